"""``q8bert train`` with a recipe that has a table for the scheme: what it takes from there, and what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.small_recipe import RECIPE

Command = Callable[..., tuple[int, str, str]]
TABLES = """
[schemes.q8bert-paper]
learning_rate = 2e-4
max_steps = 1
[schemes.q8bert]
after = "q8bert-paper"
max_steps = 2
"""


@pytest.fixture
def train(run: Command, data: Path, tmp_path: Path) -> Command:
    """Run ``q8bert train`` on a recipe with the tables."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "cola.toml").write_text("teacher = true\n" + RECIPE.format(seeds=1) + TABLES)
    where = ["--task", "cola", "--data", data / "glue" / "CoLA", "--recipes", tmp_path / "recipes"]

    def call(*more: object) -> tuple[int, str, str]:
        return run("train", *where, *more)

    return call


def training(folder: Path) -> dict[str, object]:
    return json.loads((folder / "q8bert.json").read_text())["training"]


def test_a_schemes_table_sets_its_hyperparameters_and_is_named(train: Command, base: Path, tmp_path: Path) -> None:
    fp32, first, second = (tmp_path / name for name in ("fp32", "first", "second"))
    code, _, err = train("--scheme", "fp32", "--model", base, "--max-steps", 1, "--output", fp32)
    assert code == 0, err
    assert "[schemes." not in err
    code, _, err = train("--scheme", "q8bert-paper", "--model", fp32, "--evals", 2, "--output", first)
    assert code == 0, err
    assert f"{tmp_path / 'recipes' / 'cola.toml'}, [schemes.q8bert-paper]: learning_rate 0.0002, max_steps 1\n" in err
    made = training(first)
    config = made["config"]
    assert isinstance(config, dict)
    assert (config["learning_rate"], config["max_steps"], config["evals"]) == (2e-4, 1, 2)  # an option wins
    assert config["batch_size"] == 8  # from [qat]
    code, _, err = train("--model", first, "--output", second)
    assert code == 2
    assert f"--model {first} was trained with quantization; name the fine-tuned model with --teacher" in err
    code, _, err = train("--model", first, "--teacher", fp32, "--output", second)
    assert code == 0, err
    assert "it is for a model trained with q8bert-paper, taught by the last float one (--teacher)" in err
    assert training(second)["steps"] == 2


def test_a_scheme_that_does_not_exist_is_refused(train: Command, base: Path, tmp_path: Path) -> None:
    code, _, err = train("--scheme", "q9bert", "--model", base, "--output", tmp_path / "out")
    assert code == 2
    assert "no scheme 'q9bert'" in err
