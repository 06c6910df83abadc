"""Reads users' text files: decodes them, and refuses files that are not text."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

from q8core.errors import InputError, Q8Error

_LINE_END = re.compile(r"\r\n|\r|\n")
_HALF_PAIR = re.compile("[\ud800-\udfff]")


def read_text(path: Path, error: type[Q8Error] = InputError) -> str:
    """Read a UTF-8 file, plain or ``.gz``, with or without a byte order mark.

    Args:
        path: the file's path.
        error: the error class to raise.

    Raises:
        Q8Error: the given class: the file is missing or cannot be read, is a broken gzip file, is not UTF-8, or has a
            NUL character; names the file and, if known, the line.
    """
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as problem:
        raise error(f"{path} cannot be read: {getattr(problem, 'strerror', None) or problem}") from problem
    try:
        # not "utf-8-sig", which reports the position of an error relative to the end of the mark
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as problem:
        line = line_at(raw[: problem.start].decode("utf-8"))
        byte = raw[problem.start]
        raise error(f"{path}, line {line}: not UTF-8 text (byte 0x{byte:02x}); save it as UTF-8") from problem
    before, nul, _ = text.partition("\0")
    if nul:
        raise error(f"{path}, line {line_at(before)}: a NUL character, which is no text; save it as UTF-8")
    return text


def lines_of(text: str) -> list[str]:
    """Return the lines of a text without their ends: line feeds, carriage returns (old Macs), or both together.

    Not `str.splitlines`, which also splits at characters that occur inside texts.
    """
    return _LINE_END.split(text)


def line_at(before: str) -> int:
    """Return the number of the last line of a text."""
    return len(lines_of(before))


def text_problem(text: str) -> str | None:
    """Return why a string, such as one with JSON escapes, is not valid text; None if it is."""
    if "\0" in text:
        return "holds a NUL character, which is no text"
    half = None if text.isascii() else _HALF_PAIR.search(text)
    return half and f"holds half a surrogate pair, \\u{ord(half[0]):04x}, which is no text"
