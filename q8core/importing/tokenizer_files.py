"""The tokenizer of a hub folder as ``tokenizer.json`` and ``tokenizer_config.json``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from q8core.errors import CheckpointError
from q8core.tokenizer import VERY_LARGE, copy_tokenizer
from q8core.tokenizer_config import CONFIG_FILE, read_json

_FILE = "tokenizer.json"
_OF_THE_CALL = ("is_local", "local_files_only")
"""Keys that transformers writes about its call, not about the tokenizer."""


def write_tokenizer(folder: Path, target: Path) -> str:
    """Write a folder's tokenizer, made by transformers if there is no tokenizer.json; return how it was made.

    A ``model_max_length`` that means "no limit" is left out.

    Raises:
        CheckpointError: the folder has no vocabulary, or one that cannot be read.
    """
    if (folder / _FILE).is_file() and (folder / CONFIG_FILE).is_file():
        copy_tokenizer(folder, target)
        how = f"{_FILE} taken over"
    else:
        tokenizer = load_theirs(folder)
        files = _vocabulary_files(folder, tokenizer)
        tokenizer.save_pretrained(target)
        how = f"{_FILE} made of {' and '.join(files)} by transformers' {type(tokenizer).__name__}"
        how += _case(folder, tokenizer)
    _clean_config(target / CONFIG_FILE)
    return how


def load_theirs(folder: Path) -> Any:
    """Return transformers' tokenizer of a folder, without network and without code from the folder.

    Raises:
        CheckpointError: transformers cannot load these files.
    """
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers, tokenizers and missing packages raise many kinds
        pieces = sorted(path.name for path in folder.glob("*.model"))
        if pieces and find_spec("sentencepiece") is None:
            raise CheckpointError(
                f"{folder} has no {_FILE}, and the package sentencepiece, which reads {', '.join(pieces)}, is not "
                "installed: pip install sentencepiece protobuf"
            ) from error
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder}: transformers cannot make a tokenizer of its files: {reason}") from error


def _vocabulary_files(folder: Path, tokenizer: Any) -> list[str]:
    """Return the files that hold the vocabulary.

    Raises:
        CheckpointError: one is missing, in which case transformers silently makes an empty vocabulary.
    """
    if (folder / _FILE).is_file():
        return [_FILE]
    named: dict[str, str] = tokenizer.vocab_files_names
    files = sorted({file for file in named.values() if file != _FILE}, reverse=True)
    missing = [file for file in files if not (folder / file).is_file()]
    if missing or not files:
        raise CheckpointError(
            f"{folder} has no tokenizer: neither {_FILE} nor {' and '.join(files) or 'a vocabulary'}, which "
            f"transformers' {type(tokenizer).__name__} reads"
        )
    return files


def _case(folder: Path, tokenizer: Any) -> str:
    """Say how case is handled, if the tokenizer has such a switch and the folder does not set it."""
    lowers = getattr(tokenizer, "do_lower_case", None)
    if lowers is None:
        return ""
    name = f"do_lower_case {json.dumps(lowers)}"
    if "do_lower_case" in read_json(folder / CONFIG_FILE):
        return f", {name}"
    said = f"; nothing in the folder says do_lower_case, so it is transformers' default, {json.dumps(lowers)}"
    if lowers and _has_upper_case(tokenizer.get_vocab()):
        said += (
            f". NOTE: the vocabulary has words with upper-case letters, which are never found so; for a cased model "
            f'put {{"do_lower_case": false}} into {CONFIG_FILE} and import it again'
        )
    return said


def _has_upper_case(words: Iterable[str]) -> bool:
    return any(word != word.lower() for word in words if not re.fullmatch(r"\[.*\]|<.*>", word))


def _clean_config(file: Path) -> None:
    """Remove keys that are not facts of the tokenizer; a file without such keys keeps its bytes."""
    values = read_json(file)
    limit = values.get("model_max_length")
    drop = {name for name in _OF_THE_CALL if name in values}
    if isinstance(limit, int | float) and limit > VERY_LARGE:
        drop.add("model_max_length")
    if drop:
        kept = {name: value for name, value in values.items() if name not in drop}
        file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
