"""Texts without labels: how they are read and divided."""

from __future__ import annotations

from pathlib import Path

import pytest

from q8core.errors import InputError
from q8core.tasks.columns import Columns
from q8core.tasks.unlabelled import MOST_HELD_OUT, divided, read_unlabelled

TEXTS = Columns("text", None, None)


def test_a_text_file_has_a_text_a_line(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(f'a "film", number {i}' for i in range(20)) + "\n\n  \n", encoding="utf-8")
    assert read_unlabelled(file, TEXTS) == [(f'a "film", number {i}', None) for i in range(20)]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_tables_need_no_labels(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"texts.{ending}"
    rows = {
        "csv": "question,context\n" + "\n".join(f'who {i}?,"he, {i}"' for i in range(25)),
        "jsonl": "\n".join(f'{{"question": "who {i}?", "context": "he, {i}", "label": null}}' for i in range(25)),
    }
    file.write_text(rows[ending] + "\n", encoding="utf-8")
    found = read_unlabelled(file, Columns("question", "context", None))
    assert found == [(f"who {i}?", f"he, {i}") for i in range(25)]


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("t.txt", "one\ntwo\n", TEXTS, "t.txt holds 2 texts; at least 20 are needed"),
        ("t.txt", "one\n" * 30, Columns("text", "other", None), "one text a line; pairs need a table"),
        ("t.csv", "text\n" + "a\n" * 30 + '" "\n', TEXTS, "t.csv, line 32: the text is empty"),
        ("t.csv", "sentence\n" + "a\n" * 30, TEXTS, "no column 'text'; there are: 'sentence'"),
        ("t.parquet", "x", TEXTS, "allowed endings: .txt, .csv, .tsv, .jsonl"),
    ],
)
def test_what_cannot_be_used_is_refused(
    tmp_path: Path, name: str, content: str, columns: Columns, message: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_unlabelled(tmp_path / name, columns)


@pytest.mark.parametrize(("count", "asked", "calibration"), [(20, 512, 10), (1000, 100, 100), (5000, 512, 512)])
def test_nothing_is_compared_that_was_calibrated_on(count: int, asked: int, calibration: int) -> None:
    texts = [(f"text {i}", None) for i in range(count)]
    first, second = divided(texts, asked)
    assert len(first) == calibration
    assert len(second) == min(count - calibration, MOST_HELD_OUT)
    assert not {text for text, _ in first} & {text for text, _ in second}
    assert {text for text, _ in (*first, *second)} <= {text for text, _ in texts}
    assert divided(texts, asked) == (first, second)  # the same each time
    assert list(first) != texts[: len(first)]  # a file may be sorted
