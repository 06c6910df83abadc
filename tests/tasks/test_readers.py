from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from q8core.errors import InputError
from q8core.tasks.squad import read_squad
from q8core.tasks.tabular import Columns, TableRow, read_classify, read_table
from q8core.tasks.task import QATask, answer_positions
from q8core.tokenizer import load_tokenizer

CELLS = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1).filter(lambda t: t.strip())


def cells(rows: list[TableRow]) -> list[tuple[str, str | None, str]]:
    return [(row.text, row.text_pair, row.label) for row in rows]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5))
def test_csv_round_trip(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    assert cells(read_table(tmp_path / "t.csv", Columns())) == [(text, None, label.strip()) for text, label in rows]


def test_all_formats_give_the_same_rows(tmp_path: Path) -> None:
    rows = [{"a": 'he said "no', "b": "x y", "y": "1"}, {"a": "ünï", "b": "z", "y": "0"}]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    tsv = "a\tb\ty\n" + "".join("\t".join(row.values()) + "\n" for row in rows)
    (tmp_path / "t.tsv").write_text("\ufeff" + tsv, encoding="utf-8")
    (tmp_path / "t.tsv.gz").write_bytes(gzip.compress(tsv.encode()))
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("a", "b", "y"), *(row.values() for row in rows)])
    columns = Columns("a", "b", "y")
    expected = [('he said "no', "x y", "1"), ("ünï", "z", "0")]
    for name in ("t.jsonl", "t.tsv", "t.tsv.gz", "t.csv"):
        found = read_table(tmp_path / name, columns)
        assert cells(found) == expected
        assert [row.line for row in found] == ([1, 2] if name == "t.jsonl" else [2, 3])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"text,label\n", "no rows"),
        ("a.csv", b"text,kind\nx,1\n", "line 1: no column 'label'; there are: 'text', 'kind'"),
        ("a.csv", b"text,label\nx,1,2\n", "line 2: 3 cells, but the header has 2"),
        ("a.csv", b'text,label\n"x"y,1\n', "line 2: broken line"),
        ("a.csv", b"text,label\nx,1\n \t,1\n", "line 3: the text is empty"),
        ("a.csv", b"text,label\nx,\n", "line 2: the label is empty"),
        ("a.csv", b"text,label\nx,1\n\xff\xfe,1\n", "line 3: not UTF-8"),
        ("a.jsonl", b'{"text": "x", "label": "1"}\n{"text": \n', "line 2: not valid JSON"),
        ("a.jsonl", b'["x"]\n', "line 1: expected a JSON object, got ['x']"),
        ("a.txt", b"text,label\nx,1\n", "allowed endings: .csv, .tsv, .jsonl"),
        ("a.csv.gz", b"not gzip", "cannot be read"),
    ],
)
def test_bad_tables_are_named_with_file_and_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_table(tmp_path / name, Columns())
    assert message in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize(("name", "comma"), [("a.csv", ","), ("a.tsv", "\t")])
def test_no_row_of_a_users_own_file_is_skipped(tmp_path: Path, name: str, comma: str) -> None:
    rows = [("text", "label"), *[("x", "1")] * 300, ("y",), ("z", "0")]
    (tmp_path / name).write_text("".join(comma.join(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"line 302: 1 cells, but the header has 2$"):
        read_table(tmp_path / name, Columns())


def test_a_dev_label_that_train_lacks_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\nx,cat\ny,dog\n")
    (tmp_path / "dev.csv").write_text("text,label\nx,cat\ny,cow\n")
    with pytest.raises(InputError, match=r"dev\.csv, line 3: unknown label 'cow'; known: cat, dog"):
        read_classify(tmp_path / "train.csv", tmp_path / "dev.csv", Columns())
    (tmp_path / "train.csv").write_text("text,label\nx,cat\n")
    with pytest.raises(InputError, match="at least 2"):
        read_classify(tmp_path / "train.csv", tmp_path / "dev.csv", Columns())


def squad_file(folder: Path, context: str, answer: str, start: int, name: str = "dev-v1.1.json") -> Path:
    qa = {"id": "q1", "question": "who?", "answers": [{"text": answer, "answer_start": start}]}
    document = {"data": [{"title": "t", "paragraphs": [{"context": context, "qas": [qa]}]}]}
    (folder / name).write_text(json.dumps(document))
    return folder / name


def test_a_wrong_answer_start_moves_to_the_nearest_occurrence(tmp_path: Path) -> None:
    context = "cat on cat on cat"
    assert read_squad(squad_file(tmp_path, context, "cat", 7))[0].answer_start == 7
    assert read_squad(squad_file(tmp_path, context, "cat", 12))[0].answer_start == 14
    assert read_squad(squad_file(tmp_path, context, "cat", 2))[0].answer_start == 0


def test_bad_squad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'dog', which is not in its context"):
        read_squad(squad_file(tmp_path, "cat", "dog", 0))
    (tmp_path / "x.json").write_text('{"data": [{"paragraphs": [{}]}]}')
    with pytest.raises(InputError, match="SQuAD's layout"):
        read_squad(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{"data": [')
    with pytest.raises(InputError, match="not valid JSON"):
        read_squad(tmp_path / "x.json")


@pytest.mark.parametrize("question", ["", " \t\n", "\u00a0"])
def test_an_empty_question_is_named_with_its_file_and_id(tmp_path: Path, question: str) -> None:
    file = squad_file(tmp_path, "a cat", "cat", 2)
    file.write_text(file.read_text().replace('"who?"', json.dumps(question)))
    with pytest.raises(InputError) as caught:
        read_squad(file)
    kind = "blank" if question else "empty"
    assert str(caught.value) == f"{file}: data[0].paragraphs[0].qas[0] (id 'q1'): question is {kind}"


def test_targets_point_at_the_answer_or_at_cls(tiny_qa: Path, tmp_path: Path) -> None:
    context = "the cat sat on the mat. " * 12 + "paris built it. " + "the dog sat. " * 12
    example = read_squad(squad_file(tmp_path, context, "paris", context.index("paris")))[0]
    task = QATask([example], [example], load_tokenizer(tiny_qa), max_length=64)
    windows = task._encode(example)
    targets = [answer_positions(window, example) for window in windows]
    assert len(windows) > 2
    assert (0, 0) in targets
    found = [(w, t) for w, t in zip(windows, targets, strict=True) if t != (0, 0)]
    assert found
    for window, (start, end) in found:
        left, right = window.offsets[start], window.offsets[end]
        assert left is not None
        assert right is not None
        assert context[left[0] : right[1]] == "paris"


def test_real_squad(shared_data: Path) -> None:
    dev = read_squad(shared_data / "squad" / "dev-v1.1.json.gz")
    assert len(dev) == 10570
    assert all(e.context[e.answer_start :].startswith(e.answers[0]) for e in dev)


def test_real_banking77_as_own_data(shared_data: Path) -> None:
    folder = shared_data / "banking77"
    data = read_classify(folder / "train.csv", folder / "test.csv", Columns(label="category"))
    assert (len(data.train), len(data.dev), len(data.labels)) == (10003, 3080, 77)
