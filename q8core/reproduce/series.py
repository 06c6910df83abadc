"""A series of runs over tasks and seeds: everything checked first, then run by run, with a report after each step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from q8core.bench.environment import environment
from q8core.checkpoint.float_source import FloatSource
from q8core.checkpoint.text_input import checked_tokenizer
from q8core.errors import InputError
from q8core.quant import PRESETS, Scheme, find_scheme
from q8core.reproduce.data import TITLES, DataFacts, DataSource, check_tasks
from q8core.reproduce.methods import BASELINES, CALIBRATION_EXAMPLES
from q8core.reproduce.record import RunRecord, check_same, load_records
from q8core.reproduce.reports import Reports
from q8core.reproduce.run import RunSettings, execute
from q8core.reproduce.summary import metrics_of
from q8core.reproduce.timing import remaining
from q8core.tasks.examples import REGRESSION_LABELS
from q8core.tasks.glue import GLUE
from q8core.tasks.labels import Classes, official_classes
from q8core.tasks.task import Task
from q8core.training.identity import weights_digest
from q8core.training.model import find_source, output_order
from q8core.training.recipe import Recipe, load_recipe


@dataclass(frozen=True)
class Order:
    """The options of `q8bert reproduce`.

    Attributes:
        model: folder or hub id of the pretrained model.
        data: folder with the tasks' folders.
        tasks: names of the tasks.
        output: folder for runs and tables.
        seeds: number of seeds for every task; None: as its recipe says.
        scheme: the scheme of the quantization-aware training.
        recipes: folder with the user's own recipes.
        keep_float: whether finished runs keep their float weights.
        plot: whether to draw a picture too.
    """

    model: str
    data: Path
    tasks: Sequence[str]
    output: Path
    seeds: int | None = None
    scheme: str = "q8bert"
    recipes: Path | None = None
    keep_float: bool = False
    plot: bool = False


@dataclass(frozen=True)
class Planned:
    """A planned run, and its record so far."""

    record: RunRecord
    settings: RunSettings
    facts: DataFacts


def reproduce(order: Order, say: Callable[[str], None]) -> bool:
    """Make every run that is not finished; return whether all have all their scores.

    Args:
        order: the options.
        say: called with a line for the user whenever something begins or ends.

    Raises:
        InputError: data, recipe, model or an earlier run in the output folder is wrong; raised before any training.
    """
    source, runs = plan(order)
    reports = Reports(order.output, base_name(order.model), find_scheme(order.scheme).name, order.plot)
    planned = [run.record for run in runs]
    reports.write(planned)
    todo = [run for run in runs if not run.record.complete]
    say(f"{len(runs)} runs, {len(runs) - len(todo)} of them finished before")
    data: dict[str, Task] = {}
    for place, run in enumerate(todo, 1):
        record = run.record
        say(f"run {place} of {len(todo)}: {TITLES[record.task]}, seed {record.seed}")
        if record.task not in data:
            data.clear()  # one data set in memory at a time
            data[record.task] = source.read(record.task)

        def note(method: str, record: RunRecord = record) -> None:
            say(f"  {_outcome(record, method)}")
            reports.write(planned, draw=False)

        execute(record, run.settings, data[record.task], note)
        reports.write(planned)
        say(f"run {place} of {len(todo)}: {record.status}, {_left(runs, todo[place:])}")
    return all(run.record.complete for run in runs)


def plan(order: Order) -> tuple[DataSource, list[Planned]]:
    """Check everything that can be checked without training; return the data and the runs in order.

    Raises:
        InputError: as for :func:`reproduce`.
    """
    tasks = check_tasks(order.tasks)
    scheme = find_scheme(order.scheme)
    if not scheme.needs_ranges:
        raise InputError(
            f"--scheme {order.scheme} needs no training; allowed: q8bert, q8bert-smooth, q8bert-attention, "
            "q8bert-paper, or a file"
        )
    if order.seeds is not None and order.seeds < 1:
        raise InputError(f"--seeds is {order.seeds}; at least 1")
    recipes = {task: load_recipe(task, order.recipes) for task in tasks}
    base = {"name": base_name(order.model), "sha256": weights_digest(order.model)}
    common = {"base": base, "scheme": _scheme_identity(scheme), "calibration_examples": CALIBRATION_EXAMPLES}
    found = load_records(order.output / "runs")
    for record in found:
        check_same(record, {**record.identity, **common})
    model = find_source(order.model)
    model.check_values()
    for task in tasks:
        _check_head(model, task)
    tokenizer = checked_tokenizer(model.path, model.config)
    source = DataSource(order.data, tokenizer, model.config.spec.positions)
    facts = source.facts(tasks)
    runs = [_runs(order, task, recipes[task], facts[task], common, found) for task in tasks]
    return source, [run for of_task in runs for run in of_task]


def _runs(
    order: Order, task: str, recipe: Recipe, facts: DataFacts, common: dict[str, Any], found: Sequence[RunRecord]
) -> list[Planned]:
    """Return the runs of a task, each with its record by an earlier command if there is one."""
    data = {"train": facts.train, "dev": facts.dev, "sha256": facts.sha256}
    identity = {**common, "data": data, "fp32": recipe.fp32.to_dict(), "qat": recipe.qat.to_dict()}
    identity["teacher"] = recipe.teacher
    earlier = {record.seed: record for record in found if record.task == task}
    for record in earlier.values():
        check_same(record, identity)
    runs: list[Planned] = []
    for seed in range(recipe.fp32.seed, recipe.fp32.seed + (order.seeds or recipe.seeds)):
        folder = order.output / "runs" / task / f"seed-{seed}"
        record = earlier.get(seed) or RunRecord(folder, task, seed, identity, versions=_versions())
        configs = replace(recipe.fp32, seed=seed), replace(recipe.qat, seed=seed)
        runs.append(
            Planned(record, RunSettings(order.model, order.scheme, *configs, recipe.teacher, order.keep_float), facts)
        )
    return runs


def _scheme_identity(scheme: Scheme) -> str | dict[str, object]:
    """Return a preset's name, or the whole scheme if it is from a user's file, which may change."""
    return scheme.name if scheme.name in PRESETS else scheme.to_dict()


def _check_head(model: FloatSource, task: str) -> None:
    """Refuse a base model whose head has other labels than a task; a pretrained model has no head."""
    if task != "squad":
        names = tuple(GLUE[task].labels.values())
        output_order(model, official_classes(names) if names else Classes(REGRESSION_LABELS))


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


def base_name(model: str) -> str:
    """Return the name of the base model in tables."""
    return Path(model).absolute().name if Path(model).is_dir() else model


def _versions() -> dict[str, Any]:
    machine = environment()
    return {"q8bert": version("q8bert"), **{name: machine[name] for name in ("torch", "transformers", "python", "cpu")}}
