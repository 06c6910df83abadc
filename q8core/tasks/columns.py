"""The columns to read from a table, and the check that a file has each of them once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from q8core.documents import shown
from q8core.errors import InputError

_SEPARATORS = (",", ";", "\t", "|")
_MOST_NAMES = 20


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read."""

    text: str = "text"
    text_pair: str | None = None
    label: str | None = "label"
    """None where texts have none."""
    header: tuple[str, ...] | None = None
    """The columns of a .csv or .tsv file without a header line."""
    empty_texts: bool = False
    """Whether a text may be empty."""
    short_rows: float = 0.0
    """Up to this share of rows with too few cells are skipped and logged; a file with more is refused."""
    raw_quotes: bool = False
    """Whether a .tsv is known to be written without quoting, as GLUE's are: quotes around a cell belong to the text."""

    @property
    def wanted(self) -> tuple[str, ...]:
        """The names of all columns to read."""
        return (self.text, *(name for name in (self.label, self.text_pair) if name is not None))


def check_names(where: str, names: Sequence[str], columns: Columns) -> None:
    """Check a header, or the keys of an object.

    Raises:
        InputError: a column to read is missing or occurs twice.
    """
    for name in columns.wanted:
        if name not in names:
            there = ", ".join(shown(each) for each in names[:_MOST_NAMES]) + (", ..." if names[_MOST_NAMES:] else "")
            raise InputError(f"{where}: no column {name!r}; there are: {there or 'none'}{_hint(name, names)}")
        if names.count(name) > 1:
            raise InputError(f"{where}: {names.count(name)} columns are named {name!r}; rename all but one")


def _hint(name: str, names: Sequence[str]) -> str:
    """Return a hint about similar names, which the user probably meant."""
    alike = [each for each in names if _plain(each) == _plain(name)]
    if alike:
        return f"; {shown(alike[0])} differs only by case, spaces or quotes: rename it, or ask for it by that name"
    for separator in _SEPARATORS:
        if len(names) == 1 and _plain(name) in map(_plain, names[0].split(separator)):
            return f"; the only cell holds {separator!r}: columns are separated by commas in a .csv, by tabs in a .tsv"
    return ""


def _plain(name: str) -> str:
    return name.strip(" \t\"'\ufeff\u00a0").casefold()
