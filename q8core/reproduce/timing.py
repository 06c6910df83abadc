"""How long the remaining runs will take, from those that are done."""

from __future__ import annotations

from collections.abc import Sequence

from q8core.reproduce.data import DataFacts
from q8core.reproduce.record import FP32, RunRecord
from q8core.reproduce.run import RunSettings

# Rough cost of a QAT step and of scoring, for the same data, relative to fp32 training.
_QAT_STEP, _SCORING = 1.3, 0.4


def remaining(runs: Sequence[tuple[RunRecord, RunSettings, DataFacts]], todo: Sequence[RunRecord]) -> float | None:
    """Return the seconds that the runs in `todo` will take; None before any run is complete.

    Estimated from runs of the same task if there are some, else from the amount of text and the epochs.
    """
    spent: dict[str, list[float]] = {}
    costs = {id(record): _cost(record, settings, facts) for record, settings, facts in runs}
    for record, _, _ in runs:
        if record.complete:
            seconds = sum(record.seconds[name] for name in record.methods)
            spent.setdefault(record.task, []).append(seconds / costs[id(record)])
    rates = {task: sum(found) / len(found) for task, found in spent.items()}
    if not rates:
        return None
    overall = sum(rates.values()) / len(rates)
    return sum(costs[id(record)] * rates.get(record.task, overall) for record in todo)


def _cost(record: RunRecord, settings: RunSettings, facts: DataFacts) -> float:
    train, dev = facts.characters
    passes, evaluations = 0.0, len(record.methods)
    if FP32 in record.methods:
        passes, evaluations = passes + settings.fp32.epochs, evaluations + settings.fp32.evals
    if record.methods != (FP32,):
        passes, evaluations = passes + _QAT_STEP * settings.qat.epochs, evaluations + settings.qat.evals
    return train * passes + dev * _SCORING * evaluations
