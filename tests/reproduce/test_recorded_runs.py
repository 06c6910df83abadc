"""The recorded runs: made with the recipes that are here, and behind the table of q8core/reproduce/README.md."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from q8core.reproduce.cells import signed
from q8core.reproduce.data import TITLES
from q8core.reproduce.record import FP32, QAT, RunRecord, check_same, load_records
from q8core.reproduce.summary import summarize
from q8core.training.recipe import load_recipe

ROOT = Path(__file__).parents[2]
RECORDS = load_records(ROOT / ".github" / "reproduced" / "runs")
TASKS = sorted({record.task for record in RECORDS})


def test_there_are_some() -> None:
    assert RECORDS


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: f"{record.task}-{record.seed}")
def test_a_recorded_run_is_of_the_recipe_and_scheme_that_are_here(record: RunRecord) -> None:
    recipe = load_recipe(record.task)
    precision = record.identity["qat"]["precision"]  # "auto" is another one on other CPUs
    here = {name: replace(getattr(recipe, name), precision=precision).to_dict() for name in ("fp32", "qat")}
    check_same(record, {**record.identity, **here, "teacher": recipe.teacher, "scheme": "q8bert"})
    assert record.complete
    assert not record.errors


@pytest.mark.parametrize("task", TASKS)
def test_the_readme_says_what_the_records_say(task: str) -> None:
    own = [record for record in RECORDS if record.task == task]
    [row, *_] = summarize(own)
    text = (ROOT / "q8core" / "reproduce" / "README.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if re.match(rf"\| {TITLES[task]}[ ,].*%", line))

    def score(method: str) -> str:
        cell = row.cells[method]
        return f"{cell.mean:.2f}" + (f" ({cell.deviation:.2f})" if cell.deviation is not None else "")

    relative = {method: signed(cell.relative) for method, cell in row.cells.items()}
    assert [cell.strip() for cell in line.strip("|").split("|")][2:] == [
        str(len(own)),
        score(FP32),
        f"{score(QAT)}, {relative[QAT]}",
        *(relative[name] for name in ("dynamic", "dynamic-torch", "dynamic-paper", "static-max", "static-mse")),
    ]
