"""The paper's table as a user makes it: what it says, and what another call of the command repeats."""

from __future__ import annotations

import json
import re
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from q8core.quant.ops import passes
from q8core.reproduce import methods
from q8core.reproduce import run as run_module
from q8core.reproduce.methods import BASELINES, Scored
from q8core.reproduce.record import METHODS
from q8core.tasks.task import Task
from q8core.training.config import TrainConfig
from tests.cli.small_recipe import RECIPE

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    for task, seeds in (("cola", 2), ("squad", 1)):
        teacher = "teacher = true\n" if task == "squad" else ""
        (folder / f"{task}.toml").write_text(teacher + RECIPE.format(seeds=seeds))
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the first test's command, for those after it."""
    return tmp_path_factory.mktemp("finished") / "out"


@pytest.fixture
def command(run: Command, base: Path, data: Path, recipes: Path) -> Command:
    def call(output: Path, *more: object, tasks: str = "cola,squad") -> tuple[int, str, str]:
        options = ["--model", base, "--data", data, "--recipes", recipes, "--tasks", tasks, "--output", output]
        return run("reproduce", *options, *more)

    return call


@pytest.fixture
def complete(command: Command, finished: Path) -> Path:
    if not finished.exists():
        code, _, err = command(finished)
        assert code == 0, err
    return finished


def results(output: Path) -> dict[str, Any]:
    return json.loads((output / "results.json").read_text())


def table_line(output: Path, section: str, start: str) -> list[str]:
    text = (output / "table.md").read_text().split(f"## {section}\n")[1]
    line = next(line for line in text.splitlines() if line.startswith(start))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_holds_mean_deviation_and_relative_error_of_the_runs(complete: Path) -> None:
    runs = results(complete)["runs"]
    assert [(run["task"], run["seed"], run["status"]) for run in runs] == [
        ("cola", 42, "finished"),
        ("cola", 43, "finished"),
        ("squad", 42, "finished"),
    ]
    assert all(tuple(run["scores"]) == METHODS for run in runs)
    scores = {name: [100 * run["scores"][name]["mcc"] for run in runs[:2]] for name in METHODS}
    cells = table_line(complete, "All methods", "| CoLA | MCC")
    assert cells[2] == "2"
    titles = ["fp32", "qat", *BASELINES]
    reference = statistics.mean(scores["fp32"])
    for name, cell in zip(titles, cells[3:], strict=True):
        mean, deviation = statistics.mean(scores[name]), statistics.stdev(scores[name])
        assert cell.startswith(f"{mean:.2f} ({deviation:.2f})")
        if name != "fp32":
            relative = float(cell.split(", ")[1].removesuffix(" %").replace("\N{MINUS SIGN}", "-"))
            assert relative == pytest.approx(100 * (mean / reference - 1), abs=0.0051)
    summary = next(row for row in results(complete)["summary_in_percent"] if row["metric"] == "mcc")
    assert summary["cells"]["qat"]["mean"] == pytest.approx(statistics.mean(scores["qat"]), rel=1e-12)
    single = table_line(complete, "All methods", "| SQuAD v1.1 | F1")
    assert single[3] == f"{runs[2]['scores']['fp32']['f1']:.2f}"  # in percent already, and no deviation of one seed
    beside = table_line(complete, "Beside the paper", "| CoLA | *paper, BERT-base*")
    assert beside[4:] == ["58.48 (1.54)", "58.48 (1.32)", "0.00 %", "56.74 (0.61)", "\N{MINUS SIGN}2.98 %"]
    assert (complete / "relative_error.png").read_bytes().startswith(b"\x89PNG")


def test_a_recipe_makes_the_fine_tuned_model_the_teacher(complete: Path) -> None:
    taught = {}
    for made in results(complete)["runs"]:
        folder = complete / "runs" / made["task"] / f"seed-{made['seed']}" / "qat"
        training = json.loads((folder / "q8bert.json").read_text())["training"]
        assert ("taught by" in made["how"]["qat"]) == ("teacher" in training)
        taught[made["task"]] = training.get("teacher", {}).get("name")
    assert taught == {"cola": None, "squad": "fp32"}


@pytest.mark.parametrize("fine_tuned", [True, False])
def test_train_takes_the_recipes_teacher_where_there_is_one(
    run: Command, base: Path, data: Path, recipes: Path, tmp_path: Path, fine_tuned: bool
) -> None:
    own = Path(shutil.copytree(recipes, tmp_path / "recipes"))
    (own / "cola.toml").write_text("teacher = true\n" + RECIPE.format(seeds=1))
    where = ["--task", "cola", "--data", data / "glue" / "CoLA", "--recipes", own, "--max-steps", "1"]
    code, _, err = run("train", *where, "--model", base, "--scheme", "fp32", "--output", tmp_path / "fp32")
    assert code == 0, err
    source = tmp_path / "fp32" if fine_tuned else base
    train = ["train", *where, "--model", source, "--output", tmp_path / "int8"]
    code, _, err = run(*train, "--distill-labels", "0.5")
    if not fine_tuned:
        assert (code, err) == (2, "error: --distill-labels is 0.5, but it needs --teacher\n")
        code, _, err = run(*train)
    assert code == 0, err
    training = json.loads((tmp_path / "int8" / "q8bert.json").read_text())["training"]
    assert training.get("teacher", {}).get("name") == ("fp32" if fine_tuned else None)
    assert training["config"]["distill_labels"] == (0.5 if fine_tuned else 0.0)


def test_scores_are_those_of_the_checkpoints_that_are_kept(
    run: Command, complete: Path, data: Path, tmp_path: Path
) -> None:
    for task, folder, made in (("cola", data / "glue" / "CoLA", 1), ("squad", data / "squad", 2)):
        record = results(complete)["runs"][made]
        kept = complete / "runs" / task / f"seed-{record['seed']}"
        files = ["--task", task, "--data", folder, "--checkpoint", kept / "qat", "--json", tmp_path / "scores.json"]
        code, _, err = run("evaluate", *files)
        assert code == 0, err
        assert json.loads((tmp_path / "scores.json").read_text())["scores"]["int8"] == record["scores"]["qat"]
        card = json.loads((kept / "qat" / "q8bert.json").read_text())
        assert card["scores"]["fp32"] == record["scores"]["fp32"]
        assert card["scores"]["dynamic"] == record["scores"]["dynamic"]
        assert not list(kept.rglob("model.safetensors"))
        assert not list(kept.rglob("training_state*"))
        assert not list(kept.rglob("best*"))


def forbid(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def unexpected(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    for name in names:
        monkeypatch.setattr(run_module, name, unexpected)


def test_what_is_finished_is_not_repeated(command: Command, complete: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file: file.stat().st_mtime_ns for file in (complete / "runs").rglob("*")}
    forbid(monkeypatch, "finetune", "train_quantized")
    code, out, err = command(complete)
    assert code == 0, err
    assert "3 of them finished before" in out
    assert {file: file.stat().st_mtime_ns for file in (complete / "runs").rglob("*")} == before
    code, out, err = command(complete, "--seeds", 1, tasks="squad")
    assert code == 0, err
    assert len(results(complete)["runs"]) == 3  # the table is of all runs in the folder


def test_it_says_that_it_goes_without_the_native_library(
    command: Command, complete: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "slower passes" not in command(complete)[2]
    monkeypatch.setattr(passes, "_library", lambda: None)
    code, _, err = command(complete)
    assert code == 0
    assert "note: the native library is not there" in err


def test_an_interrupted_run_goes_on_and_ends_the_same(
    command: Command, complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "train_quantized", interrupt)
        code, _, err = command(tmp_path / "out", "--seeds", 1, tasks="cola")
    assert code == 130, err
    assert results(tmp_path / "out")["runs"][0]["status"] == "unfinished"
    forbid(monkeypatch, "finetune")
    code, _, err = command(tmp_path / "out", "--seeds", 1, tasks="cola")
    assert code == 0, err
    assert results(tmp_path / "out")["runs"][0]["scores"] == results(complete)["runs"][0]["scores"]


def test_a_failure_is_reported_and_the_other_runs_go_on(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_once(source: str, task: Task, seed: int) -> Scored:
        if seed == 42:
            raise RuntimeError("no memory\nleft")
        return Scored({"mcc": 0.5}, "made up")

    broken = methods.Method("static, MSE", "", fail_once)
    with monkeypatch.context() as patch:
        patch.setitem(run_module.BASELINES, "static-mse", broken)
        code, out, err = command(tmp_path / "out", "--no-plot", tasks="cola")
    assert code == 1
    assert "FAILED, RuntimeError: no memory" in out
    assert "some runs failed" in err
    first, second = results(tmp_path / "out")["runs"]
    assert (first["status"], second["status"]) == ("failed", "finished")
    assert first["errors"] == {"static-mse": "RuntimeError: no memory\nleft"}
    assert "qat" in first["scores"]
    text = (tmp_path / "out" / "table.md").read_text()
    assert "- **CoLA, seed 42**, static-mse: RuntimeError: no memory left" in text
    assert ", 1 seeds" in table_line(tmp_path / "out", "All methods", "| CoLA | MCC")[-1]
    assert "fail_once" in (tmp_path / "out" / "runs" / "cola" / "seed-42" / "error.txt").read_text()
    forbid(monkeypatch, "finetune", "train_quantized")
    code, _, err = command(tmp_path / "out", "--no-plot", tasks="cola")
    assert code == 0, err
    assert not (tmp_path / "out" / "relative_error.png").exists()
    assert "Failed" not in (tmp_path / "out" / "table.md").read_text()


def test_a_run_says_what_it_was_asked_for_before_it_trains(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends a run then, a command with other data finds it; and a failure has a place to be noted at."""
    seen: list[str] = []

    def fail(_source: str, _task: Task, _config: TrainConfig, output: Path, _data: str) -> None:
        seen.append(json.loads((output.parent / "result.json").read_text())["identity"]["data"]["sha256"])
        raise RuntimeError("the lights went out")

    monkeypatch.setattr(run_module, "finetune", fail)
    code, out, err = command(tmp_path / "out", "--no-plot", tasks="cola")
    assert code == 1, err
    assert out.count("FAILED, RuntimeError: the lights went out") == 2
    assert len(seen) == 2
    assert seen == [run["identity"]["data"]["sha256"] for run in results(tmp_path / "out")["runs"]]


def test_the_same_model_under_another_name_goes_on(
    command: Command, complete: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch, "finetune", "train_quantized")
    code, out, err = command(complete, "--model", shutil.copytree(base, tmp_path / "renamed"))
    assert code == 0, err
    assert "3 of them finished before" in out
    code, _, err = command(complete)  # the report names the model of the last command
    assert code == 0, err


def test_another_recipe_model_or_scheme_is_refused(
    run: Command, command: Command, complete: Path, data: Path, recipes: Path, tmp_path: Path, tiny_classifier: Path
) -> None:
    other = Path(shutil.copytree(recipes, tmp_path / "recipes"))
    changed = (other / "squad.toml").read_text().replace("1e-4", "2e-4").replace("teacher = true", "")
    (other / "squad.toml").write_text(changed)
    table = (complete / "table.md").read_text()
    for arguments, words in (
        (["--recipes", other], r"teacher was True and is False; qat.learning_rate was 0.0001 and is 0.0002.*undo the"),
        (["--scheme", "q8bert-paper"], "scheme was 'q8bert' and is 'q8bert-paper'"),
        (["--model", tiny_classifier], "base.sha256 was"),
    ):
        code, _, err = command(complete, *arguments)
        assert code == 2, err
        assert re.search(words, err.replace("\n", " ")), err
    assert (complete / "table.md").read_text() == table


def test_wrong_arguments_are_refused_before_anything_is_written(
    command: Command, recipes: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(recipes, tmp_path / "own"))
    (own / "cola.toml").write_text(RECIPE.format(seeds=2).replace("evals", "evels"))
    (tmp_path / "typo").mkdir()
    (tmp_path / "typo" / "kola.toml").write_text(RECIPE.format(seeds=1))
    for arguments, tasks, words in (
        ([], "cola,rte,mrpc", "has no folder RTE, nor glue/RTE, for rte; .* has no folder MRPC"),
        ([], "cola,kola", "names 'kola'; allowed: cola"),
        ([], ",", "names no task"),
        (["--seeds", 0], "cola", "--seeds is 0"),
        (["--scheme", "dynamic"], "cola", "needs no training"),
        (["--recipes", own], "cola", "evels is unknown; allowed here: epochs"),
        (["--recipes", tmp_path / "typo"], "cola", "kola.toml is for no task"),
        (["--recipes", tmp_path / "none"], "cola", "no such folder"),
        (["--model", tmp_path], "cola", "no config.json"),
    ):
        code, _, err = command(tmp_path / "out", *arguments, tasks=tasks)
        assert code in (2, 3), (arguments, tasks, err)
        assert re.search(words, err.replace("\n", " ")), err
        assert "Traceback" not in err
        assert not (tmp_path / "out").exists()


def test_a_broken_line_in_any_task_is_named_first(
    command: Command, run: Command, base: Path, data: Path, recipes: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "data"))
    (copy / "squad" / "dev-v1.1.json").write_text("{]")
    code, _, err = command(tmp_path / "out", "--data", copy)
    assert code == 2, err
    assert "dev-v1.1.json, line 1" in err
    assert not (tmp_path / "out").exists()
