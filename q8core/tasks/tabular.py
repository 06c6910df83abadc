"""Labelled texts in tables: CSV, TSV or JSON lines with a text, an optional second text and a label or score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from q8core.errors import InputError
from q8core.tasks.columns import Columns
from q8core.tasks.examples import ClassifyData, TextExample
from q8core.tasks.json_lines import json_rows
from q8core.tasks.labels import own_classes
from q8core.tasks.separated import separated_rows
from q8core.text_file import lines_of, read_text

_TABLES = (".csv", ".tsv", ".jsonl")


@dataclass(frozen=True)
class TableRow:
    """A row of a table, with its label as written."""

    line: int
    text: str
    text_pair: str | None
    label: str


def read_table(path: Path, columns: Columns) -> list[TableRow]:
    """Read the rows of one file; the ending decides the format.

    ``.csv`` has the quoting of RFC 4180; ``.tsv`` has none (GLUE's texts have raw, unbalanced quotes);
    ``.jsonl`` has one object per line. A file with a further ``.gz`` is decompressed.

    Raises:
        InputError: an unknown ending, a missing or repeated column, a broken line, an empty text or label, a file
        without
            rows, or more short rows than the columns allow; names file and line.
    """
    rows: list[TableRow] = []
    for line, row in _rows(path, columns):
        text, label = _text(path, line, row, columns), row[columns.label or ""].strip()
        if not label:
            raise InputError(f"{path}, line {line}: the label is empty")
        rows.append(TableRow(line, text, row[columns.text_pair] if columns.text_pair else None, label))
    if not rows:
        raise InputError(f"{path} holds no rows")
    return rows


def read_texts(path: Path, columns: Columns) -> list[tuple[str, str | None]]:
    """Read texts without labels: a text a line of a ``.txt``, or columns of a table as :func:`read_table` does.

    Raises:
        InputError: with file and line, as :func:`read_table`; or a second text is asked of a ``.txt``.
    """
    if _ending(path, (".txt", *_TABLES)) != ".txt":
        second = columns.text_pair
        return [
            (_text(path, line, row, columns), row[second] if second else None) for line, row in _rows(path, columns)
        ]
    if columns.text_pair is not None:
        raise InputError(f"{path} holds one text a line; pairs need a table: .csv, .tsv or .jsonl")
    return [(line, None) for line in lines_of(read_text(path)) if line.strip()]


def _text(path: Path, line: int, row: dict[str, str], columns: Columns) -> str:
    text = row[columns.text]
    if not text.strip() and not columns.empty_texts:
        raise InputError(f"{path}, line {line}: the text is empty")
    return text


def _ending(path: Path, allowed: tuple[str, ...]) -> str:
    """Return the ending that says what a file holds.

    Raises:
        InputError: it is none of the allowed ones.
    """
    endings = [ending for ending in path.suffixes if ending != ".gz"]
    ending = endings[-1].lower() if endings else ""
    if ending not in allowed:
        raise InputError(f"{path}: unknown kind of table; allowed endings: {', '.join(allowed)} (also with .gz)")
    return ending


def _rows(path: Path, columns: Columns) -> Iterator[tuple[int, dict[str, str]]]:
    ending = _ending(path, _TABLES)
    text = read_text(path)
    if not text.strip():
        raise InputError(f"{path} is empty")
    if ending == ".jsonl":
        return json_rows(path, text, columns)
    return separated_rows(path, text, ending == ".tsv", columns)


def read_classify(
    train: Path | None,
    dev: Path,
    columns: Columns,
    outputs: Sequence[str] = (),
    asked: Sequence[str] | None = None,
) -> ClassifyData:
    """Read train and dev files, with labels matched to the model's outputs if it has any; see :func:`own_classes`.

    Args:
        train: the training file; None for evaluation only.
        dev: the file to score on.
        columns: the columns to read.
        outputs: the model's labels by index; empty for a model without a head, which gets the classes of `train`.
        asked: the data's labels in the order of the outputs.

    Raises:
        InputError: as in :func:`read_table` and :func:`own_classes`; fewer than two labels to train on; a dev label
        that
            is not among the classes.
    """
    train_rows, dev_rows = (read_table(train, columns) if train else []), read_table(dev, columns)
    found = {row.label for row in train_rows or dev_rows}
    if train and len(found) < 2:
        raise InputError(f"{train} has {len(found)} distinct label(s); a classifier needs at least 2")
    try:
        classes, index = own_classes(found, outputs, asked)
    except InputError as error:
        raise InputError(f"{train or dev}: {error}") from error
    trained = label_examples(train, train_rows, classes.names, index) if train else ()
    dev_examples = label_examples(dev, dev_rows, classes.names, index)
    return ClassifyData(classes.names, trained, dev_examples, classes.numbers, classes.outputs)


def label_examples(
    path: Path, rows: Sequence[TableRow], names: Sequence[str], index: Callable[[str], int | None]
) -> tuple[TextExample, ...]:
    """Return examples with labels as indices.

    Args:
        path: the file, for messages.
        rows: its rows.
        names: the classes, for messages.
        index: returns the index of a label as written; None if it is not among the classes.

    Raises:
        InputError: a label is not among the classes; names file and line.
    """
    examples: list[TextExample] = []
    for row in rows:
        label = index(row.label)
        if label is None:
            known = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise InputError(f"{path}, line {row.line}: unknown label {row.label!r}; known: {known}")
        examples.append(TextExample(row.text, row.text_pair, label))
    return tuple(examples)


def score_examples(path: Path, rows: Sequence[TableRow], low: float, high: float) -> tuple[TextExample, ...]:
    """Return examples with labels as numbers.

    Raises:
        InputError: a label is not a number or outside ``low`` to ``high``; names file and line.
    """

    def score(row: TableRow) -> float:
        try:
            value = float(row.label)
        except ValueError as error:
            raise InputError(f"{path}, line {row.line}: the score {row.label!r} is no number") from error
        if not low <= value <= high:  # NaN fails this too
            raise InputError(f"{path}, line {row.line}: the score is {row.label}; allowed: {low:g} to {high:g}")
        return value

    return tuple(TextExample(row.text, row.text_pair, score(row)) for row in rows)
