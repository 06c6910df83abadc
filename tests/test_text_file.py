"""Every file that a user may have saved with an editor of Windows or an old Mac is read as the same text."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from q8core.checkpoint import Checkpoint
from q8core.errors import CheckpointError, InputError, Q8Error, SchemeError
from q8core.quant import find_scheme, preset
from q8core.tasks.squad import read_squad
from q8core.tasks.tabular import Columns, read_table
from q8core.text_file import lines_of, read_text, text_problem
from q8core.training.qat import base_record
from q8core.training.recipe import load_recipe
from tests.training.test_qat import quantize_tiny

SQUAD = {"id": "1", "question": "who?", "answers": [{"text": "ada", "answer_start": 0}]}
READERS: dict[str, tuple[str, Callable[[Path], Any], type[Q8Error]]] = {
    "t.csv": ("text,label\nx,a\n", lambda file: read_table(file, Columns()), InputError),
    "t.tsv": ("text\tlabel\nx\ta\n", lambda file: read_table(file, Columns()), InputError),
    "t.jsonl": ('{"text": "x", "label": "a"}\n', lambda file: read_table(file, Columns()), InputError),
    "own.json": (
        json.dumps({"data": [{"paragraphs": [{"context": "ada", "qas": [SQUAD]}]}]}, indent=1),
        read_squad,
        InputError,
    ),
    "mine.toml": ('base = "static"\nema_decay = 0.5\n', lambda file: find_scheme(str(file)), SchemeError),
    "mine.json": (json.dumps(preset("static").to_dict(), indent=1), lambda file: find_scheme(str(file)), SchemeError),
    "rte.toml": ("seeds = 2\n[fp32]\n[qat]\n", lambda file: load_recipe("rte", file.parent), InputError),
    "training.json": ('{"scores":\n {"accuracy": 1}}', lambda file: base_record(str(file.parent)), CheckpointError),
}


@pytest.mark.parametrize("name", READERS)
def test_marks_and_ends_of_lines_do_not_matter(tmp_path: Path, name: str) -> None:
    text, read, _ = READERS[name]
    file = tmp_path / name
    file.write_bytes(text.encode())
    expected = read(file)
    for changed in ("\ufeff" + text, "\ufeff" + text.replace("\n", "\r\n"), text.replace("\n", "\r")):
        file.write_bytes(changed.encode())
        assert read(file) == expected


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a\r\nb\rc\n\xff\xfe", ", line 4: not UTF-8 text (byte 0xff); save it as UTF-8"),
        ("text".encode("utf-16"), ", line 1: not UTF-8 text (byte 0xff); save it as UTF-8"),
        ("\ufeffa\n\nb\0".encode(), ", line 3: a NUL character, which is no text; save it as UTF-8"),
    ],
)
def test_what_is_no_text_is_named_with_its_line(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    _, read, error = READERS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error) as caught:
        read(tmp_path / name)
    assert str(caught.value) == f"{tmp_path / name}{words}"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name, reason in (("none", "No such file or directory"), ("folder", "Is a directory")):
        for error in (InputError, SchemeError, CheckpointError):
            with pytest.raises(error) as caught:
                read_text(tmp_path / name, error)
            assert str(caught.value) == f"{tmp_path / name} cannot be read: {reason}"


def test_a_packed_file_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "t.gz").write_bytes(gzip.compress("\ufeffünï\r\n".encode()))
    assert read_text(tmp_path / "t.gz") == "ünï\r\n"


def test_the_files_of_a_model_folder(tiny_classifier: Path, tmp_path: Path) -> None:
    plain = Path(shutil.copytree(tiny_classifier, tmp_path / "float"))
    made = quantize_tiny(tiny_classifier, tmp_path / "int8", keep_float=False)
    for folder, name in ((plain, "config.json"), (made, "q8bert.json")):
        opened = Checkpoint.open(folder)
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
        again = Checkpoint.open(folder)
        assert (again.config, again.manifest) == (opened.config, opened.manifest)
        (folder / name).write_bytes(b"{\n\xff")
        with pytest.raises(CheckpointError, match=rf"{name}, line 2: not UTF-8 text \(byte 0xff\)"):
            Checkpoint.open(folder)


def test_a_damaged_record_of_a_training_run_is_named(tmp_path: Path) -> None:
    for content, words in (("{", "line 1: not valid JSON"), ("[]", "holds no record"), ("[" * 99_999, "too deeply")):
        (tmp_path / "training.json").write_text(content)
        with pytest.raises(CheckpointError, match=words):
            base_record(str(tmp_path))


def test_lines_end_with_newlines_alone() -> None:
    assert lines_of("a\u2028b\x85c\x0bd\x1ce\n\r\nf\rg") == ["a\u2028b\x85c\x0bd\x1ce", "", "f", "g"]


def test_strings_that_are_no_text() -> None:
    assert text_problem("😀 \ud7ff \ue000 \ufeff \uffff \U0010ffff") is None
    for first in ("\ud800", "\udbff", "\udc00", "\udfff"):
        assert f"\\u{ord(first):04x}" in str(text_problem(f"a{first}b"))
        with pytest.raises(UnicodeEncodeError):
            first.encode()
    assert text_problem("\0") == "holds a NUL character, which is no text"
