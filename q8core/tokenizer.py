"""Fast tokenizers as plain ``tokenizers.Tokenizer`` objects: no padding, no truncation, offsets kept."""

from __future__ import annotations

import os
import re
import shutil
from itertools import islice
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from q8core.errors import CheckpointError

WORD = re.compile(r"(?:(?<= )|\A)[0-9A-Za-z]")
"""The beginning of a word that becomes at least a token of its own, whatever stands around it: BERT's tokenizer splits
at spaces, and keeps ASCII letters and digits."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the WordPiece tokenizer of a Hugging Face folder.

    Padding and truncation stored in the file are switched off: lengths are decided per task. So are the threads of
    tokenizers, unless the user has set TOKENIZERS_PARALLELISM: a text that came later would wait for one of them, and
    a process that forks would be warned.

    Raises:
        CheckpointError: the folder has no ``tokenizer.json``, or it cannot be read.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer.json; save the fast tokenizer beside the model "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(folder))"
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception on bad files
        raise CheckpointError(f"{file} is not a readable tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return tokenizer


def encode_plain(tokenizer: Tokenizer, text: str) -> Encoding:
    """Encode one text without special tokens, while Python's other threads go on.

    As a batch of one: ``Tokenizer.encode`` holds Python's lock to the end of the text, ``encode_batch`` does not.
    """
    return tokenizer.encode_batch([text], add_special_tokens=False)[0]


def first_ids(tokenizer: Tokenizer, text: str, enough: int) -> list[int]:
    """Return a text's token ids without special ones; of a long text perhaps only the first ones, more than `enough`.

    What will be cut off anyway is not tokenized, which takes seconds and hundreds of bytes a token.
    """
    begin = _first_words(text, enough + 1)
    ids = encode_plain(tokenizer, begin).ids
    return ids if len(ids) > enough or len(begin) == len(text) else encode_plain(tokenizer, text).ids


def _first_words(text: str, count: int) -> str:
    """Cut a text before the word that follows on so many; all of it where it is short or they do not come soon."""
    if len(text) < 16 * count:
        return text
    following = next(islice(WORD.finditer(text, 0, 256 * count), count, None), None)
    return text if following is None else text[: following.start()]


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files from one model folder to another."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file() and source.resolve() != target.resolve():
            shutil.copyfile(source / name, target / name)
