"""Fast tokenizers as plain ``tokenizers.Tokenizer`` objects: no padding, no truncation, offsets kept."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from q8core.errors import CheckpointError
from q8core.say_once import warn_once
from q8core.special_tokens import SequenceTemplate, sequence_template
from q8core.tokenizer_agreement import agreeing_config, apply_settings
from q8core.tokenizer_config import CONFIG_FILE, SPECIAL_FILE, TokenizerSettings, read_json, read_settings
from q8core.words import WORD, splits_at_words

_VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model")
TOKENIZER_FILES = ("tokenizer.json", CONFIG_FILE, SPECIAL_FILE, *_VOCABULARIES)

VERY_LARGE = 10**9
"""A larger model_max_length means "no limit": transformers writes 10**30 if it knows none."""

_log = logging.getLogger(__name__)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a Hugging Face folder as transformers' AutoTokenizer does.

    The vocabulary is that of ``tokenizer.json``. Case, accents, Chinese characters, the space before a text and special
    tokens are those of ``tokenizer_config.json``, if the folder's tokenizer class reads them there; differences between
    the two files are logged, once per folder.

    Padding and truncation stored in the file are switched off: lengths are decided per task. So are the threads of
    tokenizers, unless the user has set TOKENIZERS_PARALLELISM: later texts would have to wait for them, and a process
    that forks would get a warning.

    Raises:
        CheckpointError: the folder has no ``tokenizer.json``, a file cannot be read or has a wrong value, or the
            tokenizer puts no special tokens around a text.
    """
    tokenizer, differences, _ = _read(folder)
    if differences:
        warn_once(_log, "tokenizer files disagree: folder=%s %s", str(folder), "; ".join(differences))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    _template_of(tokenizer, str(folder / "tokenizer.json"))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return tokenizer


def _read(folder: Path) -> tuple[Tokenizer, list[str], TokenizerSettings]:
    """Return the tokenizer as AutoTokenizer makes it, the differences between the files, and the settings."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(_advice(folder))
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception on bad files
        raise CheckpointError(f"{file} is not a readable tokenizer: {error}") from error
    settings = read_settings(folder)
    return (*apply_settings(tokenizer, settings, file), settings)


def _advice(folder: Path) -> str:
    """Return advice for a folder without tokenizer.json."""
    start = f"{folder} has no tokenizer.json"
    found = [name for name in _VOCABULARIES if (folder / name).is_file()]
    if not found:
        return (
            f"{start}; save the fast tokenizer beside the model "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(folder))"
        )
    convert = f"{start}; `q8bert import {folder} --output DIR` makes it of {' and '.join(found)}"
    return f"{convert}. {_advice_for_words(folder)}" if found == ["vocab.txt"] else convert


def _advice_for_words(folder: Path) -> str:
    """Return a line of code that makes tokenizer.json from vocab.txt and keeps its case."""
    try:
        words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return f"But vocab.txt cannot be read: {error}"
    if "do_lower_case" in read_json(folder / CONFIG_FILE):
        return (
            f"In Python, AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r}), which obeys "
            f"do_lower_case in {CONFIG_FILE}, does the same in place"
        )
    cased = any(word != word.lower() for word in words if not re.fullmatch(r"\[.*\]|<.*>", word))
    has = "has words with upper-case letters" if cased else "has no word with upper-case letters"
    return (
        f"Its vocab.txt {has}: in Python, AutoTokenizer.from_pretrained({str(folder)!r}, do_lower_case={not cased})"
        f".save_pretrained({str(folder)!r})"
    )


def model_max_length(folder: Path) -> int | None:
    """Return ``model_max_length`` in ``tokenizer_config.json``; None if it is missing or means "no limit".

    Raises:
        CheckpointError: the file cannot be read, or its ``model_max_length`` is not a positive whole number.
    """
    file = folder / CONFIG_FILE
    value: Any = read_json(file).get("model_max_length")
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and value > VERY_LARGE:
        return None
    if not (number and value >= 1 and value == int(value)):  # so that NaN never becomes an int
        raise CheckpointError(f"{file}: model_max_length is {json.dumps(value)}; a positive whole number is needed")
    return int(value)


def _template_of(tokenizer: Tokenizer, where: str) -> SequenceTemplate:
    try:
        return sequence_template(tokenizer)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error


def check_tokenizer(tokenizer: Tokenizer, rows: int, where: str) -> None:
    """Refuse a tokenizer with ids beyond a model's ``rows`` embeddings, or without special tokens around a text.

    Args:
        tokenizer: the tokenizer with all its added tokens.
        rows: rows of the model's word embeddings, ``vocab_size``.
        where: the model, for the message.

    Raises:
        CheckpointError: an id is ``rows`` or larger, or there are no special tokens around a text.
    """
    template = _template_of(tokenizer, where)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    # a post-processor has its own ids, which may not be in the vocabulary
    specials = {index for layout in (template.one, template.two) if layout is not None for index in layout.ids}
    if max((0, *vocabulary.values(), *specials)) >= rows:
        known = {(index, token) for token, index in vocabulary.items()}
        known |= {(index, tokenizer.id_to_token(index) or "a special token") for index in specials}
        beyond = sorted(one for one in known if one[0] >= rows)
        shown = ", ".join(f"{token!r} ({index})" for index, token in beyond[:3]) + (", ..." if beyond[3:] else "")
        raise CheckpointError(
            f"{where}: the tokenizer's ids go up to {beyond[-1][0]}, the model's table has {rows} rows; beyond it: "
            f"{shown}; take the tokenizer that the model was trained with, or give the model rows for them "
            f"(model.resize_token_embeddings({beyond[-1][0] + 1})) and train it"
        )


def encode_plain(tokenizer: Tokenizer, text: str) -> Encoding:
    """Encode one text without special tokens, without holding the GIL.

    As a batch of one: ``Tokenizer.encode`` holds the GIL while it encodes, ``encode_batch`` does not.
    """
    return tokenizer.encode_batch([text], add_special_tokens=False)[0]


def first_ids(tokenizer: Tokenizer, texts: Sequence[str], enough: int) -> list[list[int]]:
    """Return texts' token ids without special ones; of a long text perhaps only the first, but more than `enough`.

    Text that will be cut off anyway is not tokenized, which would take seconds and hundreds of bytes per token.
    """
    return _ids_of_parts(tokenizer, texts, [_first_words(tokenizer, text, enough + 1) for text in texts], enough)


def _first_words(tokenizer: Tokenizer, text: str, count: int) -> str:
    """Return the first `count` words of a text; the whole text if it is short, or has too few words near its start."""
    if len(text) < 16 * count or not splits_at_words(tokenizer):
        return text
    following = next(islice(WORD.finditer(text, 0, 256 * count), count, None), None)
    return text if following is None else text[: _with_space(following)]


def _with_space(word: re.Match[str]) -> int:
    """Return the start of a word, including the space before it."""
    return max(0, word.start() - 1)


def last_ids(tokenizer: Tokenizer, texts: Sequence[str], enough: int) -> list[list[int]]:
    """Return texts' token ids without special ones; of a long text perhaps only the last, but more than `enough`."""
    return _ids_of_parts(tokenizer, texts, [_last_words(tokenizer, text, enough + 1) for text in texts], enough)


def _ids_of_parts(tokenizer: Tokenizer, texts: Sequence[str], parts: list[str], enough: int) -> list[list[int]]:
    """Return the ids of parts that most likely have more than `enough`; where one does not, those of the whole text."""
    found = [encoding.ids for encoding in tokenizer.encode_batch(parts, add_special_tokens=False)]
    return [
        ids if len(ids) > enough or len(part) == len(text) else encode_plain(tokenizer, text).ids
        for text, part, ids in zip(texts, parts, found, strict=True)
    ]


def _last_words(tokenizer: Tokenizer, text: str, count: int) -> str:
    """Return the last `count` words of a text; the whole text if it is short, or has too few words near its end."""
    if len(text) < 16 * count or not splits_at_words(tokenizer):
        return text
    starts = [_with_space(found) for found in WORD.finditer(text, max(0, len(text) - 256 * count))]
    return text[starts[-count] :] if len(starts) >= count else text


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files from one model folder to another, unchanged if they agree with each other.

    If they do not, the copy's ``tokenizer.json`` and ``tokenizer_config.json`` both have the values in use, and there
    is no ``special_tokens_map.json``. Files of another tokenizer in the target are removed.

    Raises:
        CheckpointError: the source's tokenizer cannot be read.
    """
    if source.resolve() == target.resolve():
        return
    tokenizer, differences, settings = _read(source)
    for name in TOKENIZER_FILES:
        (target / name).unlink(missing_ok=True)
        if (source / name).is_file() and not (differences and name == SPECIAL_FILE):
            shutil.copyfile(source / name, target / name)
    if differences:
        tokenizer.save(str(target / "tokenizer.json"))
        config = json.dumps(agreeing_config(tokenizer, settings), indent=2, ensure_ascii=False)
        (target / CONFIG_FILE).write_text(config + "\n", encoding="utf-8")
