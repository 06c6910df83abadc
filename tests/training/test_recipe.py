"""Recipes as files: what a user may write there, and what is refused."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from q8core.errors import InputError
from q8core.tasks.glue import GLUE
from q8core.training.config import TrainConfig, best_precision
from q8core.training.recipe import PACKAGED, known_tasks, load_recipe

VALUES = {"epochs": 2, "batch_size": 7, "learning_rate": 1e-3, "precision": "bf16", "max_steps": 9}


def write(folder: Path, text: str, task: str = "rte") -> Path:
    (folder / f"{task}.toml").write_text(text)
    return folder


def test_there_is_a_recipe_for_every_task_and_for_nothing_else() -> None:
    assert set(known_tasks()) == {*GLUE, "squad", "classify"} == {file.stem for file in PACKAGED.iterdir()}


def test_a_file_says_everything_that_a_config_can_and_defaults_fill_the_rest(tmp_path: Path) -> None:
    lines = "\n".join(f"{name} = {value!r}" for name, value in VALUES.items())
    loaded = load_recipe("rte", write(tmp_path, f"seeds = 4\nteacher = true\n[fp32]\n[qat]\n{lines}\n"))
    assert (loaded.seeds, loaded.teacher) == (4, True)
    assert loaded.qat == TrainConfig(**VALUES)  # pyright: ignore[reportArgumentType]
    assert loaded.fp32 == TrainConfig(precision=best_precision())
    assert load_recipe("rte", tmp_path).qat.changed(epochs=5.0, seed=None).epochs == 5.0
    assert load_recipe("cola", tmp_path) == load_recipe("cola")  # no file of the user's: the packaged one


@pytest.mark.parametrize("best", ["fp32", "bf16"])
def test_a_precision_left_out_or_auto_is_the_machines_fastest(
    best: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("q8core.training.config.best_precision", lambda: best)
    loaded = load_recipe("rte", write(tmp_path, "[fp32]\n[qat]\nprecision = 'auto'\n"))
    assert (loaded.fp32.precision, loaded.qat.precision) == (best, best)
    assert TrainConfig().precision == "fp32"


@pytest.mark.parametrize("field", fields(TrainConfig), ids=lambda field: field.name)
def test_every_field_can_stand_in_a_file(field, tmp_path: Path) -> None:
    value = {"max_steps": 3, "eval_examples": 5}.get(field.name, field.default)
    if value is None:
        pytest.skip("TOML has no empty value")
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    folder = write(tmp_path, f"[fp32]\n{field.name} = {text}\n[qat]\n")
    assert getattr(load_recipe("rte", folder).fp32, field.name) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[fp32]\n", "rte.toml: qat is missing"),
        ("qat = 1\n[fp32]\n", "rte.toml: qat is 1; allowed: an object"),
        ("[fp32]\nepoch = 1\n[qat]\n", r"rte.toml, \[fp32\]: epoch is unknown; allowed here: epochs, batch_size"),
        ("[fp32]\n[qat]\n[int8]\n", "rte.toml: int8 is unknown; allowed here: fp32, qat, seeds, teacher"),
        ("[fp23]\n[qat]\n", "rte.toml: fp23 is unknown; allowed here: fp32, qat"),
        ("seeds = 0\n[fp32]\n[qat]\n", "rte.toml: seeds is 0; allowed: at least 1"),
        ("seeds = true\n[fp32]\n[qat]\n", "seeds is true; allowed: a whole number"),
        ("teacher = 'fp32'\n[fp32]\n[qat]\n", "teacher is 'fp32'; allowed: true or false"),
        ("[fp32]\n[qat]\nepochs = '3'\n", r"\[qat\]: epochs is '3'; allowed: a number"),
        ("[fp32]\n[qat]\nepochs = true\n", "epochs is true; allowed: a number"),
        ("[fp32]\n[qat]\nepochs = 2026-01-01\n", "epochs is '2026-01-01'; allowed: a number"),
        ("[fp32]\nbatch_size = 2.5\n[qat]\n", "batch_size is 2.5; allowed: a whole number"),
        ("[fp32]\nbatch_size = 2.0\n[qat]\n", "batch_size is 2.0; allowed: a whole number"),
        ("[fp32]\nmax_steps = 'all'\n[qat]\n", "max_steps is 'all'; allowed: a whole number"),
        ("[fp32]\nprecision = 'fp16'\n[qat]\n", "precision is 'fp16'; allowed: 'fp32', 'bf16' or 'auto'"),
        ("[fp32]\nlearning_rate = 2\n[qat]\n", r"rte.toml, \[fp32\]: learning_rate is 2.0, out of its range"),
        ("[fp32\n", "rte.toml is not valid TOML"),
        ("[fp32]\nepochs = inf\n[qat]\n", r"\[fp32\]: epochs is inf, out of its range"),
        ("[fp32]\nepochs = nan\n[qat]\n", r"\[fp32\]: epochs is nan, out of its range"),
        (f"[fp32]\nseed = {2**63}\n[qat]\n", "fp32.seed is 9223372036854775808; allowed: from"),
        (f"[fp32]\ngrad_clip = {10**400}\n[qat]\n", "fp32.grad_clip is 1000.*000; allowed: from"),
        (f"seeds = {10**30}\n[fp32]\n[qat]\n", "seeds is 1000000000000000000000000000000; allowed: from"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_recipe("rte", write(tmp_path, text))


def test_files_that_would_be_overlooked_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no TASK.toml in it"):
        load_recipe("rte", tmp_path)
    with pytest.raises(InputError, match=r"sst-2.toml is for no task; allowed: classify, cola"):
        load_recipe("rte", write(tmp_path, "", task="sst-2"))
