"""From records to the numbers of the table: means, standard deviations and relative errors, in percent."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from q8core.reproduce.data import TITLES
from q8core.reproduce.record import FP32, METHODS, RunRecord
from q8core.tasks.glue import GLUE

_SQUAD_METRICS = ("f1", "exact_match")


@dataclass(frozen=True)
class Cell:
    """A method's scores on a task over seeds.

    Attributes:
        seeds: number of seeds.
        mean: mean in percent.
        deviation: sample standard deviation; None for a single seed.
        relative: 100 * (mean - fp32's mean) / fp32's mean over the seeds that both have; None if undefined.
        relative_deviation: standard deviation of the relative errors of these seeds; None for a single seed.
    """

    seeds: int
    mean: float
    deviation: float | None
    relative: float | None
    relative_deviation: float | None


@dataclass(frozen=True)
class Row:
    """A task and metric, with a cell for each method that has scores."""

    task: str
    metric: str
    cells: dict[str, Cell]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def metrics_of(task: str) -> tuple[str, ...]:
    """Return a task's metrics, the one in the paper first."""
    return GLUE[task].metrics if task in GLUE else _SQUAD_METRICS


def summarize(records: Sequence[RunRecord]) -> list[Row]:
    """Return one row per task and metric, in the usual order of tasks; tasks without scores have empty rows."""
    rows: list[Row] = []
    for task in TITLES:
        own = [record for record in records if record.task == task]
        if own:
            rows += [Row(task, metric, _cells(own, task, metric)) for metric in metrics_of(task)]
    return rows


def _cells(records: Sequence[RunRecord], task: str, metric: str) -> dict[str, Cell]:
    percent = 1.0 if task == "squad" else 100.0
    methods = dict.fromkeys((*METHODS, *(method for record in records for method in record.scores)))
    by_method = {
        method: {r.seed: percent * r.scores[method][metric] for r in records if method in r.scores}
        for method in methods
    }
    return {method: _cell(found, by_method[FP32]) for method, found in by_method.items() if found}


def _cell(scores: dict[int, float], reference: dict[int, float]) -> Cell:
    values, both = list(scores.values()), [seed for seed in scores if seed in reference]
    relative = relative_deviation = None
    if both and (base := statistics.fmean(reference[seed] for seed in both)) > 0:
        relative = 100 * (statistics.fmean(scores[seed] for seed in both) - base) / base
        each = [100 * (scores[s] - reference[s]) / reference[s] for s in both if reference[s] > 0]
        relative_deviation = statistics.stdev(each) if len(each) > 1 else None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Cell(len(values), statistics.fmean(values), deviation, relative, relative_deviation)
