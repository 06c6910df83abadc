from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from service.__main__ import main
from tests.tasks.glue_files import write_glue


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Run ``q8bert ARGUMENTS`` and return exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["q8bert", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        output = capfd.readouterr()
        return code, output.out, output.err

    return call


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of two tasks, in folders named as people name them."""
    folder = tmp_path_factory.mktemp("data")
    sides = (("good", "great", "funny"), ("bad", "awful", "boring"))
    rows = [(f"a {sides[i % 2][i % 3]} film {i}", "", str(i % 2)) for i in range(24)]
    rows += [("a good film", "", "1"), ("a bad plot", "", "1"), ("a very funny actor", "", "0")]  # never all right
    write_glue(folder / "glue" / "CoLA", "cola", rows)
    words = [{"id": str(i), "question": "who sat?", "answers": [{"text": "cat", "answer_start": 4}]} for i in range(4)]
    document = {"data": [{"paragraphs": [{"context": "the cat sat on the mat. " * 3, "qas": words}]}]}
    (folder / "squad").mkdir()
    for name in ("train", "dev"):
        (folder / "squad" / f"{name}-v1.1.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_qa: Path) -> Path:
    """A pretrained model: without a head for either task's labels that would matter."""
    return Path(shutil.copytree(tiny_qa, tmp_path_factory.mktemp("base") / "tiny"))
