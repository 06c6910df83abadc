"""``q8bert reproduce --schemes``: what is trained from what, what another call repeats, and what the table says."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from q8core.errors import InputError
from q8core.reproduce import run as run_module
from q8core.training.identity import weights_digest
from tests.cli.small_recipe import RECIPE

Command = Callable[..., tuple[int, str, str]]
SCHEMES = {"four": "linears.weight = { bits = 4 }\n", "two": "linears.weight = { bits = 2 }\n"}
TABLES = """
[schemes."four.toml"]
learning_rate = 2e-4
teacher = true
[schemes."two.toml"]
after = "four.toml"
teacher = true
"""


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with two schemes of a user's own, one after the other."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "cola.toml").write_text(RECIPE.format(seeds=2) + TABLES)
    own = folder.parent / "own"
    own.mkdir(exist_ok=True)
    for name, text in SCHEMES.items():
        (own / f"{name}.toml").write_text(f'base = "q8bert"\n{text}')
    (folder / "cola.toml").write_text((folder / "cola.toml").read_text().replace('"four.', f'"{own}/four.'))
    (folder / "cola.toml").write_text((folder / "cola.toml").read_text().replace('"two.', f'"{own}/two.'))
    return folder


@pytest.fixture
def command(run: Command, base: Path, data: Path, recipes: Path) -> Command:
    def call(output: Path, *more: object, schemes: str = "q8bert,two") -> tuple[int, str, str]:
        named = [
            str(recipes.parent / "own" / f"{name}.toml") if name in SCHEMES else name for name in schemes.split(",")
        ]
        options = ["--model", base, "--data", data, "--recipes", recipes, "--tasks", "cola", "--output", output]
        return run("reproduce", *options, "--schemes", ",".join(named), *more)

    return call


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the first test's command, for those after it."""
    return tmp_path_factory.mktemp("finished") / "out"


@pytest.fixture
def complete(command: Command, finished: Path) -> Path:
    if not finished.exists():
        code, _, err = command(finished, "--keep-float")
        assert code == 0, err
    return finished


def forbid(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def unexpected(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    for name in names:
        monkeypatch.setattr(run_module, name, unexpected)


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def training(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "q8bert.json").read_text())["training"]


def test_each_scheme_starts_where_its_recipe_says_and_the_fine_tuned_model_teaches(complete: Path) -> None:
    for seed in (42, 43):
        folder = complete / "runs" / "cola" / f"seed-{seed}"
        made = {name: training(folder / "schemes" / name) for name in ("q8bert", "four", "two")}
        fp32, four = (weights_digest(str(path)) for path in (folder / "fp32", folder / "schemes" / "four"))
        assert fp32 != four
        assert {name: each["base_sha256"] for name, each in made.items()} == {"q8bert": fp32, "four": fp32, "two": four}
        assert made["two"]["teacher"]["sha256"] == made["four"]["teacher"]["sha256"] == fp32
        assert "teacher" not in made["q8bert"]
        assert made["four"]["config"]["learning_rate"] == 2e-4
        assert all(each["config"]["seed"] == seed for each in made.values())
        assert record(folder)["methods"] == ["fp32"]
        assert record(folder / "schemes" / "two")["identity"]["after"]["qat"]["learning_rate"] == 2e-4


def test_the_table_has_a_line_for_each_scheme(complete: Path) -> None:
    text = (complete / "schemes.md").read_text()
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    cells = {name: [cell.strip() for cell in line.strip("|").split("|")] for name, line in lines.items()}
    assert [cells[name][1] for name in ("fp32", "q8bert", "four", "two")] == ["32-32-32", "8-8-8", "4-8-8", "2-8-8"]
    folder = complete / "runs" / "cola" / "seed-42"
    whole = (folder / "fp32" / "model.safetensors").stat().st_size
    speed = json.loads((complete / "runs" / "cola" / "speed.json").read_text())
    for name in ("q8bert", "four", "two"):
        size = (folder / "schemes" / name / "model.int8.safetensors").stat().st_size
        resident = speed["resident_bytes"][name]
        assert cells[name][2:5] == [f"{size / 1e6:.2f}", f"{whole / size:.1f}", f"{resident / 2**20:.1f}"]
        scores = [
            100 * record(folder.with_name(f"seed-{seed}") / "schemes" / name)["scores"][name]["mcc"]
            for seed in (42, 43)
        ]
        assert cells[name][5].startswith(f"{sum(scores) / 2:.2f} (")
        assert cells[name][6] == "2"
    assert cells["q8bert"][8] == cells["fp32"][9] == "1.00"
    assert {timing["workload"] for timing in speed["timings"]} == {"1x32", "8x128"}
    assert "Q8BERT: 4 times smaller; 58.48, fp32 58.48 (BERT-base, simulated)" in cells["q8bert"][-1]
    assert cells["four"][-1] == ""
    assert (complete / "schemes.png").read_bytes().startswith(b"\x89PNG")
    document = json.loads((complete / "schemes.json").read_text())
    assert [line["scheme"] for line in document["summary_in_percent"]] == ["fp32", "q8bert", "four", "two"]


def test_what_is_finished_is_not_repeated(command: Command, complete: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file: file.stat().st_mtime_ns for file in (complete / "runs").rglob("*/seed-*/**/*")}
    forbid(monkeypatch, "finetune", "train_quantized")
    code, out, err = command(complete)
    assert code == 0, err
    assert "8 runs, 8 of them finished before" in out
    assert {file: file.stat().st_mtime_ns for file in (complete / "runs").rglob("*/seed-*/**/*")} == before


def test_an_interrupted_run_goes_on_and_ends_the_same(
    command: Command, complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = run_module.train_quantized

    def interrupt(*arguments: Any, **more: Any) -> Any:
        if Path(arguments[3]).stem == "two":
            raise KeyboardInterrupt
        return train(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "train_quantized", interrupt)
        code, _, err = command(tmp_path / "out", "--seeds", 1, "--no-plot")
    assert code == 130, err
    forbid(monkeypatch, "finetune")
    code, out, err = command(tmp_path / "out", "--seeds", 1, "--no-plot")
    assert code == 0, err
    assert "run 1 of 1: CoLA, seed 42, two" in out
    folder = tmp_path / "out" / "runs" / "cola" / "seed-42"
    ours, theirs = (record(each / "schemes" / "two") for each in (folder, complete / "runs" / "cola" / "seed-42"))
    assert ours["scores"] == theirs["scores"]
    assert not (folder / "fp32" / "model.safetensors").exists()  # without --keep-float
    assert (folder / "schemes" / "four" / "model.safetensors").exists()  # another scheme comes after it
    assert not (folder / "schemes" / "two" / "model.safetensors").exists()
    assert not (tmp_path / "out" / "schemes.png").exists()


def test_a_fine_tuned_model_of_the_papers_table_is_used_and_the_table_goes_on_from_ours(
    run: Command, command: Command, complete: Path, base: Path, data: Path, recipes: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    output = Path(shutil.copytree(complete, tmp_path / "out"))
    shutil.rmtree(output / "runs" / "cola" / "seed-43")
    options = ["--model", base, "--data", data, "--recipes", recipes, "--tasks", "cola", "--output", output]
    with monkeypatch.context() as patch:
        forbid(patch, "finetune")
        code, _, err = run("reproduce", *options, "--seeds", 1, "--keep-float", "--no-plot")
        assert code == 0, err
    shutil.rmtree(output / "runs" / "cola" / "seed-42" / "schemes")
    forbid(monkeypatch, "finetune")
    made = record(output / "runs" / "cola" / "seed-42")
    assert {"fp32", "qat"} <= made["scores"].keys()
    code, _, err = command(output, "--seeds", 1, "--no-plot", schemes="q8bert")
    assert code == 0, err
    assert record(output / "runs" / "cola" / "seed-42")["scores"] == made["scores"]
    assert (output / "runs" / "cola" / "seed-42" / "fp32" / "model.safetensors").exists()


def test_a_failure_is_recorded_and_the_others_go_on(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = run_module.train_quantized

    def fail(*arguments: Any, **more: Any) -> Any:
        if Path(arguments[3]).stem == "four":
            raise InputError("the lights went out")
        return train(*arguments, **more)

    monkeypatch.setattr(run_module, "train_quantized", fail)
    code, out, err = command(tmp_path / "out", "--seeds", 1, "--no-plot", schemes="two,q8bert")
    assert code == 1, err
    assert "four: FAILED, the lights went out" in out
    assert re.search("two: FAILED, .*four has no model.safetensors: its own training failed", out)
    text = (tmp_path / "out" / "schemes.md").read_text()
    assert "- **CoLA, seed 42**, four: the lights went out" in text
    assert "| q8bert | 8-8-8 |" in text


def test_what_is_wrong_is_refused_before_any_training(
    command: Command, complete: Path, recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch, "finetune", "train_quantized")
    twin, table = tmp_path / "q" / "four.toml", tmp_path / "fp32.toml"
    twin.parent.mkdir()
    twin.write_text('base = "q8bert"\n')
    table.write_text('base = "q8bert"\n')
    stray = tmp_path / "stray.toml"
    stray.write_text('base = "q8bert"\noverrides."layers.9.*" = "float"\n')
    for schemes, more, words in (
        ("q8bert,q9bert", [], "no scheme 'q9bert'; allowed are q8bert"),
        ("dynamic", [], "--schemes names dynamic, which needs no training"),
        (f"four,{twin}", [], "are two schemes with the name 'four'"),
        (str(table), [], "a scheme with the name 'fp32' has no place among the runs"),
        (str(stray), [], r"override 'layers.9.\*' matches no site"),
        (",", [], "--schemes names no scheme"),
        ("q8bert", ["--scheme", "q8bert"], "name one of them"),
    ):
        code, _, err = command(tmp_path / "out", *more, schemes=schemes)
        assert code == 2, (schemes, err)
        assert re.search(words, err.replace("\n", " ")), err
        assert not (tmp_path / "out").exists()
    other = Path(shutil.copytree(recipes, tmp_path / "recipes"))
    (other / "cola.toml").write_text((other / "cola.toml").read_text().replace("learning_rate = 2e-4", ""))
    code, _, err = command(complete, "--recipes", other)
    assert code == 2
    assert re.search(r"after.qat.learning_rate was 0.0002 and is 0.0001|qat.learning_rate was 0.0002", err), err
