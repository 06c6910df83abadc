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
    assert load_recipe("rte", tmp_path).config(True, epochs=5.0, seed=None).epochs == 5.0
    assert load_recipe("cola", tmp_path) == load_recipe("cola")  # no file of the user's: the packaged one


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
        ("[fp32]\n", r"rte.toml, \[qat\]: the table is missing"),
        ("[fp32]\nepoch = 1\n[qat]\n", r"\[fp32\]: unknown key 'epoch'; allowed: epochs, batch_size"),
        ("[fp32]\n[qat]\n[int8]\n", "unknown key 'int8'; allowed: seeds, teacher, fp32, qat"),
        ("seeds = 0\n[fp32]\n[qat]\n", "seeds is 0; a whole number of at least 1"),
        ("seeds = true\n[fp32]\n[qat]\n", "seeds is true"),
        ("teacher = 'fp32'\n[fp32]\n[qat]\n", "teacher is 'fp32'; true or false"),
        ("[fp32]\n[qat]\nepochs = '3'\n", r"\[qat\]: epochs is '3'; allowed: float"),
        ("[fp32]\n[qat]\nepochs = true\n", "epochs is true; allowed: float"),
        ("[fp32]\nbatch_size = 2.5\n[qat]\n", "batch_size is 2.5; allowed: int"),
        ("[fp32]\nmax_steps = 'all'\n[qat]\n", "max_steps is 'all'; allowed: int"),
        ("[fp32]\nprecision = 'fp16'\n[qat]\n", "precision is 'fp16'; allowed: 'fp32', 'bf16', 'auto'"),
        ("[fp32]\nlearning_rate = 2\n[qat]\n", r"rte.toml, \[fp32\]: learning_rate is 2, out of its range"),
        ("[fp32\n", "rte.toml is not valid TOML"),
        ("[fp32]\nepochs = inf\n[qat]\n", r"\[fp32\]: epochs is inf, out of its range"),
        ("[fp32]\nepochs = nan\n[qat]\n", r"\[fp32\]: epochs is nan, out of its range"),
        (f"[fp32]\nseed = {2**63}\n[qat]\n", r"\[fp32\]: seed is 9223372036854775808; allowed: int"),
        (f"[fp32]\ngrad_clip = {10**400}\n[qat]\n", r"\[fp32\]: grad_clip is 1000.*000; allowed: float"),
        (f"seeds = {10**30}\n[fp32]\n[qat]\n", "seeds is 1000000000000000000000000000000; a whole number"),
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
