"""Rows of CSV and TSV files, as cells by column."""

from __future__ import annotations

import csv
import io
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from q8core.documents import shown
from q8core.errors import InputError
from q8core.say_once import warn_once
from q8core.tasks.columns import Columns, check_names

log = logging.getLogger(__name__)

Record = tuple[int, list[str]]

_WAY_OUT = "a .tsv is read without quoting: save the table as .csv or .jsonl, or as .tsv without quoting"
_LIMIT = Lock()


def separated_rows(path: Path, text: str, tabs: bool, columns: Columns) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the wanted columns of each row, with the line on which the row begins.

    Args:
        path: the file's path.
        text: the file's text.
        tabs: True for a .tsv, without quoting; False for a .csv with the quoting of RFC 4180.
        columns: the columns to read.

    Raises:
        InputError: a missing or repeated column, a broken row, a cell of a .tsv that is quoted as in CSV, or more short
            rows than the columns allow; names file and line.
    """
    records = _records(path, text, tabs)
    raw = not tabs or columns.raw_quotes
    names, needed = _header(path, records, columns, raw)
    rows, short = 0, list[tuple[int, str]]()
    for line, cells in records:
        rows += 1
        if len(cells) != len(names):
            problem = f"{path}, line {line}: {len(cells)} cells, but {needed}"
            if len(cells) > len(names) or not columns.short_rows:
                raise InputError(problem)
            short.append((line, problem))
            continue
        every = dict(zip(names, cells, strict=True))
        row = {name: every[name] for name in columns.wanted}
        if not raw:
            _check_cells(f"{path}, line {line}", row)
        yield line, row
    if short:
        line, problem = short[0]
        if len(short) > columns.short_rows * rows:
            share = f"{len(short)} of {rows} rows have too few"
            raise InputError(f"{problem}; {share}, and only up to {columns.short_rows:.0%} are skipped")
        message = "rows with too few cells skipped: file=%s rows=%d first_line=%d"
        warn_once(log, message, path, len(short), line)


def _header(path: Path, records: Iterator[Record], columns: Columns, raw: bool) -> tuple[Sequence[str], str]:
    """Return the names of all columns, and a phrase for how many cells a row must have."""
    if columns.header:
        return columns.header, f"it needs {len(columns.header)}: {', '.join(columns.header)}"
    line, names = next(records)
    quoted = [] if raw else [name for name in names if _in_quotes(name)]
    if quoted:
        raise InputError(f"{path}, line {line}: the header's {shown(quoted[0])} is quoted, but {_WAY_OUT}")
    check_names(f"{path}, line {line}", names, columns)
    return names, f"the header has {len(names)}"


def _check_cells(where: str, row: dict[str, str]) -> None:
    """Refuse a cell that was certainly written with quoting: in quotes, with all inner quotes doubled."""
    for name, cell in row.items():
        if _in_quotes(cell) and '""' in cell and '"' not in cell[1:-1].replace('""', ""):
            raise InputError(f"{where}: column {name!r} is {shown(cell)}, quoted as in CSV, but {_WAY_OUT}")


def _in_quotes(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == '"'


def _records(path: Path, text: str, tabs: bool) -> Iterator[Record]:
    """Yield the cells of each row that is not blank, with the line on which it begins."""
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(lines, strict=True)
    begin = 1
    try:
        while (cells := _next_cells(reader)) is not None:
            if cells:
                yield begin, cells
            begin = reader.line_num + 1
    except csv.Error as error:
        unclosed = "a quote is opened and never closed"
        problem = unclosed if str(error) == "unexpected end of data" else f"broken line: {error}"
        raise InputError(f"{path}, line {begin}: {problem}") from error


def _next_cells(reader: Any) -> list[str] | None:
    """Return the next row's cells, of any length: csv's limit is global, so it is raised here if needed."""
    with _LIMIT:
        before = csv.field_size_limit(sys.maxsize)
        try:
            return next(reader, None)
        finally:
            csv.field_size_limit(before)
