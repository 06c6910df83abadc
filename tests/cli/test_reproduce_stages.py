"""``q8bert reproduce --schemes binary-split``: its stages, each from the one before, resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from q8core.checkpoint import Checkpoint
from q8core.reproduce import run as run_module
from q8core.reproduce import scheme_speed
from q8core.training.identity import weights_digest
from tests.cli.small_recipe import RECIPE

Command = Callable[..., tuple[int, str, str]]
TABLES = """
[schemes.half]
scheme = "fp32"
width = 0.5
max_steps = 2
distill_attention = 0.0
[schemes.ternary-half]
scheme = "ternary"
after = "half"
max_steps = 1
[schemes.binary-split]
after = "ternary-half"
max_steps = 2
"""


@pytest.fixture
def command(
    run: Command, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], tuple[int, str, str]]:
    monkeypatch.setattr(scheme_speed, "_ROUNDS", 1)
    monkeypatch.setattr(scheme_speed, "SHAPES", scheme_speed.SHAPES[:1])
    (tmp_path / "recipes").mkdir()
    text = RECIPE.format(seeds=1).replace("epochs = 3.0", "epochs = 1.0")
    (tmp_path / "recipes" / "cola.toml").write_text(f"teacher = true\n{text}{TABLES}")
    options = ["--model", base, "--data", data, "--recipes", tmp_path / "recipes", "--tasks", "cola", "--no-plot"]
    return lambda: run("reproduce", *options, "--output", tmp_path / "out", "--schemes", "binary-split")


def test_each_stage_is_made_from_the_one_before_and_the_last_float_model_teaches(
    command: Callable[[], tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = run_module.train_quantized

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "train_quantized", interrupt)
        assert command()[0] == 130
    folder = tmp_path / "out" / "runs" / "cola" / "seed-42"
    schemes = folder / "schemes"
    digests = {folder: weights_digest(str(folder)) for folder in (folder / "fp32", schemes / "half")}
    monkeypatch.setattr(run_module, "finetune", interrupt)
    monkeypatch.setattr(run_module, "train_quantized", train)
    code, out, err = command()
    assert code == 0, err
    assert "4 runs, 2 of them finished before" in out
    assert weights_digest(str(schemes / "half")) == digests[schemes / "half"]
    half = json.loads((schemes / "half" / "training.json").read_text())
    made = {
        name: json.loads((schemes / name / "q8bert.json").read_text())["training"]
        for name in ("ternary-half", "binary-split")
    }
    assert half["base_sha256"] == half["teacher"]["sha256"] == digests[folder / "fp32"]
    assert {each["teacher"]["sha256"] for each in made.values()} == {digests[schemes / "half"]}
    assert made["ternary-half"]["base_sha256"] == digests[schemes / "half"]
    assert made["binary-split"]["base_sha256"] == weights_digest(str(schemes / "ternary-half"))
    opened = Checkpoint.open(schemes / "binary-split")
    assert (opened.config.spec.heads, opened.config.spec.head_size, opened.config.spec.inner) == (2, 8, 32)
    lines = (
        line.split(" | ") for line in (tmp_path / "out" / "schemes.md").read_text().splitlines() if line[:2] == "| "
    )
    bits = {line[0].strip("| "): line[1] for line in lines}
    assert bits == {
        "scheme": "bits",
        "fp32": "32-32-32",
        "half": "32-32-32",
        "ternary-half": "2-2-8",
        "binary-split": "2-2-8",
    }
    how = json.loads((schemes / "binary-split" / "result.json").read_text())["how"]["binary-split"]
    assert how == "trained with scheme binary-split, after ternary-half, taught by half, executed in int8"
