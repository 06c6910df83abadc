"""Tables that users bring: what is no text or label is refused with its line; quotes are read as they were written."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pytest

from q8core.errors import InputError
from q8core.tasks.glue import read_glue
from q8core.tasks.tabular import Columns, TableRow, read_table
from tests.tasks.glue_files import write_glue

GOOD = '{"text": "fine", "label": "a"}'
PAIRED = Columns("text", "second", "label")


def refusal(file: Path, content: str | bytes, columns: Columns | None = None) -> str:
    file.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    with pytest.raises(InputError) as caught:
        read_table(file, columns or Columns())
    message = str(caught.value)
    assert message.startswith(str(file))
    assert "\n" not in message
    return message.removeprefix(str(file))


def rows(file: Path, content: str, columns: Columns | None = None) -> list[TableRow]:
    file.write_text(content, encoding="utf-8", newline="")
    return read_table(file, columns or Columns())


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("NaN", "is NaN"),
        ("Infinity", "is Infinity"),
        ("-Infinity", "is -Infinity"),
        ("null", "is null"),
        ("3", "is 3"),
        ("2.5", "is 2.5"),
        ("true", "is true"),
        ('["a", "b"]', "is ['a', 'b']"),
        ('{"a": 1}', "is an object"),
        ('"half \\ud83d pair"', "holds half a surrogate pair, \\ud83d"),
        ('"low \\udc00 alone"', "holds half a surrogate pair, \\udc00"),
        ('"a\\u0000b"', "holds a NUL character"),
    ],
)
@pytest.mark.parametrize("column", ["text", "second"])
def test_only_a_json_string_is_a_text(tmp_path: Path, column: str, value: str, words: str) -> None:
    other = {"text": "second", "second": "text"}[column]
    line = f'{{"{column}": {value}, "{other}": "fine", "label": "a"}}'
    message = refusal(tmp_path / "t.jsonl", f'{{"text": "x", "second": "y", "label": "a"}}\n\n{line}\n', PAIRED)
    assert message.startswith(f", line 3: column {column!r} {words}")


@pytest.mark.parametrize(
    ("value", "label"),
    [('"a"', "a"), ("3", "3"), ("-1", "-1"), ("true", "True"), ("false", "False"), ("1.0", "1.0"), ('"NaN"', "NaN")],
)
def test_a_label_is_a_text_or_a_whole_number_or_a_truth_value(tmp_path: Path, value: str, label: str) -> None:
    assert rows(tmp_path / "t.jsonl", f'{{"text": "x", "label": {value}}}') == [TableRow(1, "x", None, label)]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("NaN", "is NaN; allowed for a label: a text, a whole number, true or false"),
        ("1e999", "is Infinity; allowed for a label"),
        ("null", "is null; allowed for a label"),
        ("0.5", "is 0.5; allowed for a label"),
        ('{"a": 1}', "is an object; allowed for a label"),
        ('["a", "b"]', "is a list; several labels of one text are not supported yet"),
        ("[]", "is a list; several labels of one text are not supported yet"),
        ('"\\ud83d"', "holds half a surrogate pair"),
        ("1" * 5000, "a number has too many digits"),
    ],
)
def test_other_values_are_no_label(tmp_path: Path, value: str, words: str) -> None:
    message = refusal(tmp_path / "t.jsonl", f'{GOOD}\n{{"text": "x", "label": {value}}}')
    assert message.startswith(", line 2: ")
    assert words in message


def test_what_other_columns_hold_does_not_matter(tmp_path: Path) -> None:
    line = '{"id": NaN, "text": "x", "id": [null, {"text": 3}], "label": "a", "note": "\\ud83d"}'
    assert rows(tmp_path / "t.jsonl", line) == [TableRow(1, "x", None, "a")]
    assert rows(tmp_path / "t.csv", "id,text,id,label\n1,x,2,a\n") == [TableRow(2, "x", None, "a")]


@pytest.mark.parametrize("column", ["text", "second", "label"])
def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, column: str) -> None:
    names = ["text", "second", "label", column]
    for name, comma in (("t.csv", ","), ("t.tsv", "\t")):
        content = comma.join(names) + "\n" + comma.join("wxyz") + "\n"
        assert refusal(tmp_path / name, content, PAIRED).startswith(f", line 1: 2 columns are named {column!r}")
    line = "{" + ", ".join(f'"{name}": "x"' for name in names) + "}"
    assert refusal(tmp_path / "t.jsonl", line, PAIRED).startswith(f", line 1: 2 columns are named {column!r}")


@pytest.mark.parametrize(
    ("name", "header", "hint"),
    [
        ("t.csv", "Text,label", "'Text' differs only by case, spaces or quotes"),
        ("t.csv", "text, label", "' label' differs only by case"),
        ("t.csv", "text ,label", "'text ' differs only by case"),
        ("t.csv", "'text',label", "\"'text'\" differs only by case"),
        ("t.csv", "text;label", "the only cell holds ';'"),
        ("t.csv", "text\tlabel", r"the only cell holds '\t'"),
        ("t.csv", "text|label", "the only cell holds '|'"),
        ("t.tsv", "text,label", "the only cell holds ','"),
        ("t.csv", ",label", "there are: '', 'label'"),
        ("t.csv", "a\u200bb,label", r"there are: 'a\u200bb', 'label'"),
    ],
)
def test_a_missing_column_is_named_with_what_is_there(tmp_path: Path, name: str, header: str, hint: str) -> None:
    comma = "\t" if name == "t.tsv" else ","
    message = refusal(tmp_path / name, f"{header}\nx{comma}y\n")
    assert message.startswith(", line 1: no column ")
    assert hint in message


def test_a_key_that_an_object_lacks(tmp_path: Path) -> None:
    message = refusal(tmp_path / "t.jsonl", f'{GOOD}\n{{"Text": "x", "label": "a"}}')
    assert message.startswith(", line 2: no column 'text'; there are: 'Text', 'label'; 'Text' differs only by case")


def as_pandas_writes(table: list[tuple[str, ...]], quoting: int = csv.QUOTE_MINIMAL) -> str:
    """The text that ``DataFrame.to_csv(sep=tab)`` writes, which hands its rows to this writer."""
    stream = io.StringIO()
    csv.writer(stream, delimiter="\t", quoting=quoting, lineterminator="\n").writerows(table)
    return stream.getvalue()


def test_a_tsv_that_was_written_with_quoting_is_refused(tmp_path: Path) -> None:
    table = [("text", "label"), ("plain", "a"), ('He said "good" and left', "b")]
    message = refusal(tmp_path / "t.tsv", as_pandas_writes(table))
    assert message.startswith(""", line 3: column 'text' is '"He said ""good"" and left"', quoted as in CSV""")
    assert "save the table as .csv or .jsonl" in message
    message = refusal(tmp_path / "t.tsv", as_pandas_writes(table[:2], csv.QUOTE_ALL))
    assert message.startswith(""", line 1: the header's '"text"' is quoted""")
    assert refusal(tmp_path / "t.tsv", as_pandas_writes([("text", "label"), ('"', "a")])).startswith(", line 2: ")
    assert refusal(tmp_path / "t.tsv", 'text\tlabel\n""\ta\n').startswith(", line 2: ")  # an empty cell, quoted
    table[2] = (table[2][0], table[2][0])
    assert "column 'label'" in refusal(tmp_path / "t.tsv", as_pandas_writes([table[0], ("x", 'say "b"')]))


@pytest.mark.parametrize(
    "text", ['"in quotes"', 'un"balanced', '"begins', 'ends"', '"', 'two "" inside', '"a" and ""b""']
)
def test_quotes_of_a_tsv_without_quoting_are_parts_of_its_texts(tmp_path: Path, text: str) -> None:
    assert rows(tmp_path / "t.tsv", f"text\tlabel\n{text}\ta\n") == [TableRow(2, text, None, "a")]


def test_official_files_may_look_quoted(tmp_path: Path) -> None:
    text = '"He said ""good"" and left"'
    assert read_glue("sst2", write_glue(tmp_path, "sst2", [(text, "", "1"), ("bad", "", "0")])).dev[0].text == text


def test_cells_of_any_size_and_no_trace_of_it(tmp_path: Path) -> None:
    csv.field_size_limit(limit := 131_072)
    for name, comma in (("t.csv", ","), ("t.tsv", "\t")):
        for long in ("x" * 131_073, "y" * 2_000_000):
            assert rows(tmp_path / name, f"text{comma}label\n{long}{comma}a\n")[0].text == long
    assert csv.field_size_limit() == limit
    refusal(tmp_path / "t.csv", 'text,label\n"x')
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('text,label\nx,a\n"open,a\nx,a\nx,a\n', ", line 3: a quote is opened and never closed"),
        ('text,label\n\n\n"two\nlines",a,b\nx,a\n', ", line 4: 3 cells"),
        ('text,label\n"two\nlines",a\n"x"y,a\n', ", line 4: broken line"),
        ('text,label\n"x\n\n" z,a\n', ", line 2: broken line"),
        ('text,label\n"two\n\nlines",\n', ", line 2: the label is empty"),
        ('text,label\n"\n\n",a\n', ", line 2: the text is empty"),
        ('\n\n"text\nmore",label\nx,a\n', ", line 3: no column 'text'"),
        ("text,label\rx,a\r,a\r", ", line 3: the text is empty"),
        ("text,label\r\nx,a\r\n,a\r\n", ", line 3: the text is empty"),
    ],
)
def test_a_problem_is_where_its_row_begins(tmp_path: Path, content: str, words: str) -> None:
    assert refusal(tmp_path / "t.csv", content).startswith(words)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("name", "comma"), [("t.csv", ","), ("t.tsv", "\t")])
def test_all_ends_of_lines(tmp_path: Path, name: str, comma: str, end: str) -> None:
    content = end.join([f"text{comma}label", f"x{comma}a", "", f"y{comma}b", ""])
    assert rows(tmp_path / name, content) == [TableRow(2, "x", None, "a"), TableRow(4, "y", None, "b")]


def test_all_ends_of_json_lines(tmp_path: Path) -> None:
    lines = [GOOD, "", '{"text": "a\u2028b\x85c", "label": "b"}', ""]
    for end in ("\n", "\r\n", "\r"):
        found = rows(tmp_path / "t.jsonl", end.join(lines))
        assert found == [TableRow(1, "fine", None, "a"), TableRow(3, "a\u2028b\x85c", None, "b")]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl"])
def test_a_nul_character_is_no_text(tmp_path: Path, name: str) -> None:
    assert refusal(tmp_path / name, b"text,label\nx,a\rx\0y,a\n").startswith(", line 3: a NUL character")
    utf16 = "text,label\nx,a\n".encode("utf-16-le")  # without a byte order mark it is UTF-8, with NULs
    assert refusal(tmp_path / name, utf16).startswith(", line 1: a NUL character, which is no text; save it as UTF-8")


def test_deep_nesting_in_a_line(tmp_path: Path) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    assert refusal(tmp_path / "t.jsonl", f'{GOOD}\n{{"text": {deep}}}') == ", line 2: nested too deeply"


def test_a_damaged_gzip_file(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl.gz"
    whole = gzip.compress(json.dumps({"text": "a text of several words", "label": "a"}).encode(), mtime=0)
    for place in range(10, len(whole)):  # before lie the flags and the time of writing
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        assert refusal(file, bytes(damaged)).startswith(" cannot be read: ")
    for content in (whole[:-9], whole + b"more", whole[:3]):
        assert refusal(file, content).startswith(" cannot be read: ")
