from __future__ import annotations

import os
from pathlib import Path

import pytest

from q8core.checkpoint.manifest import FLOAT_FILE
from q8core.training.finetune import save_float
from q8core.training.model import load_model


@pytest.mark.parametrize(("mask", "mode"), [(0o022, "0o644"), (0o027, "0o640")])
def test_the_files_have_ordinary_permissions(tiny_classifier: Path, tmp_path: Path, mask: int, mode: str) -> None:
    model = load_model(str(tiny_classifier), "classify", ("negative", "positive"))
    before = os.umask(mask)
    try:
        save_float(model, tiny_classifier, tmp_path / "fp32")
    finally:
        os.umask(before)
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in (tmp_path / "fp32").iterdir()}
    assert {FLOAT_FILE, "config.json", "tokenizer.json"} < set(modes)
    assert modes == dict.fromkeys(modes, mode)
