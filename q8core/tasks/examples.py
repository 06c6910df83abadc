"""What every reader yields: examples with the file and line they came from."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

from q8core.errors import InputError


@dataclass(frozen=True)
class TextExample:
    """A text, or a pair, with the index of its label."""

    text: str
    text_pair: str | None
    label: int


@dataclass(frozen=True)
class ClassifyData:
    """A classification data set in memory."""

    labels: tuple[str, ...]
    train: tuple[TextExample, ...]
    dev: tuple[TextExample, ...]


@dataclass(frozen=True)
class QAExample:
    """A SQuAD question; ``answers`` are all accepted texts, ``answer_start`` is the first one's code point."""

    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    answer_start: int


def open_text(path: Path) -> str:
    """Read a UTF-8 file, plain or ``.gz``, with or without a byte order mark.

    Raises:
        InputError: the file is missing, empty, not UTF-8, or a broken gzip file.
    """
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: not UTF-8 text (byte 0x{raw[error.start]:02x}); save it as UTF-8"
        ) from error
    if not text.strip():
        raise InputError(f"{path} is empty")
    return text
