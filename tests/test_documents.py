"""JSON and TOML of users: refused where two readers would understand them differently, with the file and the place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from q8core.documents import parse_json, parse_strict_json, place_name, read_json, read_toml, shown, validated
from q8core.errors import InputError, SchemeError

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(VALUES)
def test_what_is_allowed_is_what_the_standard_library_reads(value: object) -> None:
    assert parse_strict_json(json.dumps(value), Path("f")) == value
    assert parse_json(json.dumps(value), Path("f")) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", " is empty"),
        ("\n \t", " is empty"),
        ("{\n\n,}", ", line 3: not valid JSON: Expecting property name enclosed in double quotes"),
        ("[1] 2", ", line 1: not valid JSON: Extra data"),
        ('{"a": {"b": 1, "c": 2, "b": 1}}', ": an object has the key 'b' twice"),
        ("[NaN]", ": not valid JSON: NaN is no number"),
        ("-Infinity", ": not valid JSON: -Infinity is no number"),
        ("-1e400", ": the number '-1e400' is too large"),
        ("9" * 4301, ": a number has too many digits"),
        ('{"a":' * 50_000, ": nested too deeply"),
        (r'{"a": [1, {"b": "\ud83d"}]}', r": a[1].b holds half a surrogate pair, \ud83d, which is no text"),
        (r'{"a": {"\udc00": 1}}', r": a.'\udc00' holds half a surrogate pair, \udc00, which is no text"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "f.json"
    file.write_text(text)
    with pytest.raises(SchemeError) as caught:
        read_json(file, SchemeError)
    assert str(caught.value) == f"{file}{words}"


def test_a_whole_pair_is_a_text(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(r'["\ud83d\ude00", "\\ud83d"]')
    assert read_json(tmp_path / "f.json") == ["😀", "\\ud83d"]


def test_a_part_of_a_file_names_its_line() -> None:
    for text, words in (("{", "not valid JSON: "), ("9" * 5000, "a number has too many"), ("[" * 50_000, "nested too")):
        with pytest.raises(InputError) as caught:
            parse_json(text, Path("f"), 7)
        assert str(caught.value).startswith(f"f, line 7: {words}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = 1\na = 2\n", "Cannot overwrite a value (at line 2"),
        ("a = \n", "Invalid value (at line 1"),
        ("a = " + "9" * 5000, "a number has too many digits"),
        ("a = " + "[" * 50_000, "nested too deeply"),
        ('a = "\\ud83d"', "Escaped character is not a Unicode scalar value"),
    ],
)
def test_what_is_no_toml(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "f.toml").write_text(text)
    with pytest.raises(InputError) as caught:
        read_toml(tmp_path / "f.toml")
    assert str(caught.value).startswith(f"{tmp_path / 'f.toml'} is not valid TOML: {words}")


def test_whole_numbers_of_toml_have_64_bits(tmp_path: Path) -> None:
    ends = {"low": -(2**63), "high": 2**63 - 1}
    (tmp_path / "f.toml").write_text("".join(f"{name} = {end}\n" for name, end in ends.items()))
    assert read_toml(tmp_path / "f.toml") == ends
    for number in (ends["low"] - 1, ends["high"] + 1):
        (tmp_path / "f.toml").write_text(f"[a]\nb = [1, {{ c = {number} }}]")
        with pytest.raises(SchemeError) as caught:
            read_toml(tmp_path / "f.toml", SchemeError)
        words = f"a.b[1].c is {number}; allowed: from -2^63 to 2^63 - 1"
        assert str(caught.value) == f"{tmp_path / 'f.toml'}: {words}"


def test_places_and_values_in_messages() -> None:
    assert place_name(("data", 3, "a", 0, 1)) == "data[3].a[0][1]"
    assert place_name((0, "a\nb")) == "[0].'a\\nb'"
    assert place_name(()) == "the document"
    assert place_name(("",)) == "''"
    assert place_name(("a" * 80, "b" * 81)) == "a" * 80 + ".'" + "b" * 37 + "..." + "b" * 38 + "'"
    assert [shown(value) for value in (None, True, False, float("nan"), "é", 1.5)] == [
        *("null", "true", "false", "NaN", "'é'", "1.5")
    ]
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for value in ("x" * 10_000, list(range(10_000)), deep, 10**4000, {"a" * 500: "b" * 500}):
        assert len(shown(value)) < 250
        assert "\n" not in shown(value)


@dataclass(frozen=True)
class Leaf:
    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 0:
            raise SchemeError(f"size is {self.size}; allowed: at least 0")


@dataclass(frozen=True)
class Tree:
    leaf: Leaf | None
    row: tuple[Leaf, ...] = ()
    named: Mapping[str, list[Leaf]] = field(default_factory=dict[str, list[Leaf]])


def test_a_dataclass_is_made_of_plain_values() -> None:
    values = {"leaf": {"size": 2}, "row": [{}], "named": {"leaf": [{"size": 3}]}}
    assert validated(Tree, values, "f") == Tree(Leaf(2), (Leaf(),), {"leaf": [Leaf(3)]})
    assert validated(Tree, {"leaf": None}, "f") == Tree(None)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "leaf is missing"),
        ({"leave": None}, "leave is unknown; allowed here: leaf, row, named"),
        ({"leaf": {"size": "1", "sise": 1}}, "leaf.sise is unknown; allowed here: size"),
        ({"leaf": None, "row": [{}, {"": 1}]}, "row[1].'' is unknown; allowed here: size"),
        ({"leaf": None, "named": {"row": [{"b": 1}]}}, "named.row[0].b is unknown; allowed here: size"),
        ({"leaf": {"size": 1.5}}, "leaf.size is 1.5; allowed: a whole number"),
        ({"leaf": {"size": -1}}, "size is -1; allowed: at least 0"),
    ],
)
def test_what_is_wrong_in_a_dataclass_is_named(values: dict[str, object], words: str) -> None:
    with pytest.raises(SchemeError) as caught:
        validated(Tree, values, "f", SchemeError)
    assert str(caught.value) == f"f: {words}"
