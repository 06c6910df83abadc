"""Numbers of the table beside NumPy's, the paper's beside its own relative errors, and the picture."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from q8core.bench.environment import environment
from q8core.errors import InputError
from q8core.reproduce.cells import signed
from q8core.reproduce.data import DataFacts, find_folder
from q8core.reproduce.paper import PAPER
from q8core.reproduce.plot import draw_errors, plot_errors
from q8core.reproduce.record import METHODS, RunRecord, check_same
from q8core.reproduce.run import RunSettings
from q8core.reproduce.summary import summarize
from q8core.reproduce.timing import remaining
from q8core.training.config import TrainConfig

# (task, model) -> relative errors of QAT and DQ as the paper prints them
PRINTED = {
    ("cola", 0): (0.00, -2.98),
    ("mrpc", 0): (-0.49, -2.36),
    ("mrpc", 1): (0.04, -2.95),
    ("qnli", 0): (0.35, -1.06),
    ("qnli", 1): (0.09, -3.58),
    ("qqp", 0): (0.14, -3.26),
    ("rte", 0): (-1.32, -9.15),
    ("sst2", 0): (-0.13, -1.43),
    ("stsb", 0): (-0.65, -2.19),
    ("stsb", 1): (-0.24, -8.08),
    ("squad", 0): (-0.81, -9.54),
}


def make_record(task: str, seed: int, metrics: tuple[str, ...], scale: float = 1.0) -> RunRecord:
    draw = random.Random(f"{task} {seed}")
    scores = {name: {metric: scale * draw.uniform(0.5, 1) for metric in metrics} for name in METHODS}
    identity = {"data": {"train": 10, "dev": 5}, "fp32": TrainConfig().to_dict(), "qat": TrainConfig().to_dict()}
    return RunRecord(Path(f"{task}-{seed}"), task, seed, identity, scores)


def test_means_deviations_and_relative_errors_are_numpys() -> None:
    records = [make_record("mrpc", seed, ("f1", "accuracy")) for seed in range(5)]
    rows = summarize(records)
    assert [(row.task, row.metric) for row in rows] == [("mrpc", "f1"), ("mrpc", "accuracy")]
    for row in rows:
        values = {name: np.array([100 * r.scores[name][row.metric] for r in records]) for name in METHODS}
        for name, cell in row.cells.items():
            assert cell.mean == pytest.approx(values[name].mean(), rel=1e-12)
            assert cell.deviation == pytest.approx(values[name].std(ddof=1), rel=1e-12)
            relative = 100 * (values[name].mean() / values["fp32"].mean() - 1)
            assert cell.relative == pytest.approx(relative, rel=1e-9, abs=1e-9)
            each = 100 * (values[name] / values["fp32"] - 1)
            assert cell.relative_deviation == pytest.approx(each.std(ddof=1), rel=1e-9, abs=1e-9)


def test_a_method_that_lacks_a_seed_is_compared_on_the_seeds_it_has() -> None:
    records = [make_record("cola", seed, ("mcc",)) for seed in range(3)]
    del records[0].scores["qat"]
    (row,) = summarize(records)
    fp32, qat = ([r.scores[name]["mcc"] for r in records[1:]] for name in ("fp32", "qat"))
    assert row.cells["qat"].seeds == 2
    assert row.cells["qat"].relative == pytest.approx(100 * (np.mean(qat) / np.mean(fp32) - 1))


def test_nothing_is_relative_to_zero() -> None:
    record = make_record("cola", 1, ("mcc",))
    record.scores["fp32"]["mcc"] = 0.0
    (row,) = summarize([record])
    assert row.cells["qat"].relative is None
    assert signed(None) == "undefined"


def test_the_papers_numbers_give_its_own_relative_errors() -> None:
    found = {(task, place): row for task, rows in PAPER.items() for place, row in enumerate(rows)}
    assert found.keys() == PRINTED.keys()
    for key, row in found.items():
        for score, printed in zip((row.qat, row.dynamic), PRINTED[key], strict=True):
            assert 100 * (score.mean / row.fp32.mean - 1) == pytest.approx(printed, abs=0.0075), key


def test_signs() -> None:
    assert [signed(x) for x in (-0.494, 0.0, 0.001, 2.5)] == ["\N{MINUS SIGN}0.49 %", "0.00 %", "0.00 %", "+2.50 %"]


def test_a_record_made_before_a_recipe_knew_a_field_is_still_the_same() -> None:
    record = make_record("cola", 1, ("mcc",))
    asked = {**record.identity, "fp32": TrainConfig(seed=9).to_dict()}
    del record.identity["fp32"]["average"]
    check_same(record, asked)
    with pytest.raises(InputError, match=r"fp32.average was 0.0 and is 0.5"):
        check_same(record, {**asked, "fp32": TrainConfig(average=0.5).to_dict()})


def test_the_time_left_is_that_of_like_runs_or_scales_with_text_and_epochs() -> None:
    def planned(task: str, seed: int, characters: int) -> tuple[RunRecord, RunSettings, DataFacts]:
        config = TrainConfig(epochs=2.0, seed=seed)
        settings = RunSettings("base", "q8bert", config, config, teacher=False, keep_float=False)
        facts = DataFacts(10, 5, "", (characters, 0))
        return RunRecord(Path(task), task, seed, {}), settings, facts

    runs = [planned("rte", 1, 100), planned("rte", 2, 100), planned("cola", 1, 300)]
    assert remaining(runs, [record for record, _, _ in runs]) is None
    done = runs[0][0]
    done.scores = {name: {"accuracy": 0.5} for name in METHODS}
    done.seconds = dict.fromkeys(METHODS, 10.0)
    assert remaining(runs, [runs[1][0]]) == pytest.approx(10 * len(METHODS))
    assert remaining(runs, [runs[2][0]]) == pytest.approx(30 * len(METHODS))


def test_folders_are_found_by_either_name_and_never_guessed(tmp_path: Path) -> None:
    for name in ("glue/SST-2", "glue/STS-B", "MNLI", "SQuAD", "glue/rte"):
        (tmp_path / name).mkdir(parents=True)
    names = ("sst2", "stsb", "mnli", "mnli-mm", "squad", "rte")
    found = {task: find_folder(tmp_path, task).relative_to(tmp_path).as_posix() for task in names}
    assert found == {
        "sst2": "glue/SST-2",
        "stsb": "glue/STS-B",
        "mnli": "MNLI",
        "mnli-mm": "MNLI",
        "squad": "SQuAD",
        "rte": "glue/rte",
    }
    assert find_folder(tmp_path / "glue", "sst2").name == "SST-2"
    (tmp_path / "RTE").mkdir()
    with pytest.raises(InputError, match="several folders for rte"):
        find_folder(tmp_path, "rte")
    with pytest.raises(InputError, match="no folder CoLA, nor glue/CoLA"):
        find_folder(tmp_path, "cola")


def test_the_picture_has_a_bar_for_each_method_and_says_its_number(tmp_path: Path) -> None:
    records = [make_record("mrpc", seed, ("f1", "accuracy")) for seed in range(3)]
    records += [make_record("squad", 1, ("f1", "exact_match"), scale=100)]
    records[3].scores["dynamic-paper"]["f1"] = 5.0
    rows = [row for row in summarize(records) if row.metric == "f1"]
    figure = draw_errors(rows, "tiny", environment())
    (axes,) = figure.axes
    assert len(axes.patches) == 2 * (len(METHODS) - 1)
    texts = {text.get_text() for text in axes.texts}
    for row in rows:
        for method, cell in row.cells.items():
            if method != "fp32":
                assert any(text.startswith(signed(cell.relative)) for text in texts)
    assert any("off the axis" in text for text in texts)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["MRPC\nF1, 3 seeds", "SQuAD v1.1\nF1, 1 seed"]
    plot_errors(summarize(records), "tiny", environment(), tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
