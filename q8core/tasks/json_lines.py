"""Rows of JSON Lines files: one object per line, as strings by key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from q8core.documents import parse_json, shown
from q8core.errors import InputError
from q8core.tasks.columns import Columns, check_names
from q8core.text_file import lines_of, text_problem


class _Object(list[tuple[str, Any]]):
    """The pairs of a JSON object; a dict would silently keep the last of two equal keys."""


def json_rows(path: Path, text: str, columns: Columns) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line number and the wanted columns of each object; other columns may hold anything.

    A text is a JSON string; a label may also be a whole number, true or false.

    Raises:
        InputError: a line is not a JSON object, a column is missing or repeated, or a value has a wrong type; names
            file and line.
    """
    for number, line in enumerate(lines_of(text), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        pairs = parse_json(line, path, number, hooks={"object_pairs_hook": _Object})
        if not isinstance(pairs, _Object):
            raise InputError(f"{where}: expected a JSON object, got {shown(pairs)}")
        check_names(where, [name for name, _ in pairs], columns)
        values = dict(pairs)
        row = {name: _text(where, name, values[name]) for name in columns.wanted if name != columns.label}
        if columns.label is not None:
            row[columns.label] = _label(where, columns.label, values[columns.label])
        yield number, row


def _text(where: str, name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: column {name!r} is {_shown(value)}; allowed: a text")
    if problem := text_problem(value):
        raise InputError(f"{where}: column {name!r} {problem}")
    return value


def _label(where: str, name: str, value: object) -> str:
    """Return a label as in a .csv file: numbers as written, truth values as Python and pandas write them."""
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(value)
    if isinstance(value, list) and not isinstance(value, _Object):
        raise InputError(f"{where}: column {name!r} is a list; several labels of one text are not supported yet")
    if not isinstance(value, str):
        problem = f"column {name!r} is {_shown(value)}"
        raise InputError(f"{where}: {problem}; allowed for a label: a text, a whole number, true or false")
    return _text(where, name, value)


def _shown(value: object) -> str:
    return "an object" if isinstance(value, _Object) else shown(value)
