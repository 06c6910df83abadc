"""A series of runs over tasks and seeds: one after the other, with a report after each step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from q8core.quant import find_scheme
from q8core.reproduce.data import TITLES
from q8core.reproduce.methods import BASELINES
from q8core.reproduce.planned import Order, Planned, unfinished
from q8core.reproduce.planning import base_name, plan
from q8core.reproduce.record import FP32, RunRecord
from q8core.reproduce.reports import Reports
from q8core.reproduce.run import execute
from q8core.reproduce.scheme_reports import SchemeReports
from q8core.reproduce.summary import metrics_of
from q8core.reproduce.timing import remaining
from q8core.tasks.task import Task
from q8core.training.model import find_source


def reproduce(order: Order, say: Callable[[str], None]) -> bool:
    """Make every run that is not finished; return whether all have all their scores.

    Args:
        order: the options.
        say: called with a line for the user whenever something begins or ends.

    Raises:
        InputError: data, recipe, model or an earlier run in the output folder is wrong; raised before any training.
    """
    source, runs = plan(order)
    reports = _reports(order, runs)
    planned = [run.record for run in runs]
    reports.write(planned)
    todo = unfinished(runs)
    say(f"{len(runs)} runs, {len(runs) - len(todo)} of them finished before")
    data: dict[str, Task] = {}
    for place, run in enumerate(todo, 1):
        record = run.record
        scheme = f", {record.methods[0]}" if record.of_scheme else ""
        say(f"run {place} of {len(todo)}: {TITLES[record.task]}, seed {record.seed}{scheme}")
        if record.task not in data:
            data.clear()  # one data set in memory at a time
            data[record.task] = source.read(record.task)

        def note(method: str, record: RunRecord = record) -> None:
            say(f"  {_outcome(record, method)}")
            reports.write(planned, draw=False)

        execute(record, run.settings, run.methods, data[record.task], note)
        _discard_weights(order, runs)
        reports.write(planned)
        say(f"run {place} of {len(todo)}: {record.status}, {_left(runs, todo[place:])}")
    if isinstance(reports, SchemeReports):
        _measure(runs, reports, say)
        reports.write(planned)
    return all(run.complete for run in runs)


def _reports(order: Order, runs: Sequence[Planned]) -> Reports | SchemeReports:
    base = base_name(order.model)
    if not order.schemes:
        return Reports(order.output, base, find_scheme(order.scheme).name, order.plot)
    names = dict.fromkeys(run.record.methods[0] for run in runs if run.record.of_scheme)
    return SchemeReports(order.output, base, find_source(order.model).config, list(names), order.plot)


def _discard_weights(order: Order, runs: Sequence[Planned]) -> None:
    """Discard the float weights of models that were fine-tuned for schemes alone, when these have been trained."""
    waiting = {(run.record.task, run.record.seed) for run in runs if not run.complete}
    for run in runs:
        record = run.record
        if record.methods == (FP32,) and not order.keep_float and (record.task, record.seed) not in waiting:
            record.weights.unlink(missing_ok=True)


def _measure(runs: Sequence[Planned], reports: SchemeReports, say: Callable[[str], None]) -> None:
    """Time the schemes of each task, on the checkpoints of its first seed."""
    first: dict[str, int] = {}
    for run in runs:
        first.setdefault(run.record.task, run.record.seed)
    for task, seed in first.items():
        say(f"timing the schemes of {TITLES[task]}, seed {seed}")
        if not reports.measure(task, seed):
            say("  none of them is finished")


def _outcome(record: RunRecord, method: str) -> str:
    title = BASELINES[method].title if method in BASELINES else method
    if method in record.errors:
        return f"{title}: FAILED, {record.errors[method]}"
    scores = ", ".join(f"{name} {record.scores[method][name]:.4f}" for name in metrics_of(record.task))
    return f"{title}: {scores} ({record.seconds[method]:.0f} s)"


def _left(runs: Sequence[Planned], todo: Sequence[Planned]) -> str:
    if not todo:
        return "nothing left"
    seconds = remaining([(run.record, run.settings, run.facts) for run in runs], [run.record for run in todo])
    if seconds is None:
        return f"{len(todo)} left"
    hours, minutes = divmod(round(seconds / 60), 60)
    end = time.strftime("%a %H:%M", time.localtime(time.time() + seconds))
    return f"{len(todo)} left, about {f'{hours} h ' if hours else ''}{minutes} min (until {end})"
