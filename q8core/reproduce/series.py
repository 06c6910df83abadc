"""A series of runs over tasks and seeds: everything checked first, then run by run, with a report after each step."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from q8core.bench.environment import environment
from q8core.checkpoint.manifest import FLOAT_FILE
from q8core.errors import InputError
from q8core.quant import find_scheme
from q8core.reproduce.data import TITLES, DataFacts, check_tasks, read_data, read_facts
from q8core.reproduce.methods import BASELINES, CALIBRATION_EXAMPLES
from q8core.reproduce.record import RunRecord, check_same, load_records
from q8core.reproduce.run import RunSettings, execute
from q8core.reproduce.summary import metrics_of, summarize
from q8core.reproduce.table import Report, markdown
from q8core.reproduce.timing import remaining
from q8core.tasks.task import Task
from q8core.tokenizer import load_tokenizer
from q8core.training.model import load_bert, model_folder
from q8core.training.recipe import load_recipe

TABLE_FILE, RESULTS_FILE, PLOT_FILE = "table.md", "results.json", "relative_error.png"


@dataclass(frozen=True)
class Order:
    """What the user asked for.

    Attributes:
        model: folder or hub id of the pretrained model.
        data: folder with the tasks' folders.
        tasks: their names.
        output: where runs and tables go.
        seeds: for every task; None for as many as its recipe says.
        scheme: of the quantization-aware training.
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
    """A run to make, and its record so far."""

    record: RunRecord
    settings: RunSettings
    facts: DataFacts


def reproduce(order: Order, say: Callable[[str], None]) -> bool:
    """Make every run that is not finished; returns whether all have all their scores.

    Args:
        order: what to do.
        say: is given a line for the user whenever something begins or ends.

    Raises:
        InputError: data, recipe, model or an earlier run in the output folder is wrong, before any time is spent.
    """
    tokenizer = load_tokenizer(model_folder(order.model))
    runs, facts = plan(order)
    _write_reports(order, runs)
    todo = [run for run in runs if not run.record.complete]
    for task, known in facts.items():
        say(f"{TITLES[task]}: {known.train:,} training and {known.dev:,} dev examples")
    say(f"{len(runs)} runs, {len(runs) - len(todo)} of them finished before")
    data: dict[str, Task] = {}
    for place, run in enumerate(todo, 1):
        record = run.record
        say(f"run {place} of {len(todo)}: {TITLES[record.task]}, seed {record.seed}")
        if record.task not in data:
            data.clear()  # one data set in memory at a time
            data[record.task] = read_data(order.data, record.task, tokenizer)
        note = partial(_note, order, runs, record, say)
        execute(record, run.settings, data[record.task], note)
        say(f"run {place} of {len(todo)}: {record.status}, {_left(runs, todo[place:])}")
    return all(run.record.complete for run in runs)


def plan(order: Order) -> tuple[list[Planned], dict[str, DataFacts]]:
    """Check everything that can be checked without training; returns the runs in order, and facts about the data.

    Raises:
        InputError: as for :func:`reproduce`.
    """
    tasks = check_tasks(order.tasks)
    if not find_scheme(order.scheme).has_activation("ema"):
        raise InputError(
            f"--scheme {order.scheme} needs no training; allowed: q8bert, q8bert-attention, q8bert-paper, or a file"
        )
    if order.seeds is not None and order.seeds < 1:
        raise InputError(f"--seeds is {order.seeds}; at least 1")
    recipes = {task: load_recipe(task, order.recipes) for task in tasks}
    facts = read_facts(order.data, tasks, load_tokenizer(model_folder(order.model)))
    base = _base(order.model)
    found = {(record.task, record.seed): record for record in load_records(order.output / "runs")}
    for record in found.values():
        check_same(record, {**record.identity, "base": base, "scheme": order.scheme})
    runs: list[Planned] = []
    for task in tasks:
        recipe, known = recipes[task], facts[task]
        _check_model(order, task)
        identity = {"base": base, "scheme": order.scheme, "calibration_examples": CALIBRATION_EXAMPLES}
        identity |= {"data": {"train": known.train, "dev": known.dev, "sha256": known.sha256}}
        identity |= {"fp32": recipe.fp32.to_dict(), "qat": recipe.qat.to_dict()}
        for record in found.values():
            if record.task == task:
                check_same(record, identity)
        for seed in range(recipe.fp32.seed, recipe.fp32.seed + (order.seeds or recipe.seeds)):
            configs = replace(recipe.fp32, seed=seed), replace(recipe.qat, seed=seed)
            folder = order.output / "runs" / task / f"seed-{seed}"
            record = found.get((task, seed)) or RunRecord(folder, task, seed, identity, versions=_versions())
            runs.append(Planned(record, RunSettings(order.model, order.scheme, *configs, order.keep_float), known))
    return runs, facts


def _check_model(order: Order, task: str) -> None:
    """Refuse a base model whose head or weights do not fit a task, by loading it once."""
    from q8core.tasks.examples import REGRESSION_LABELS
    from q8core.tasks.glue import GLUE

    kind = "qa" if task == "squad" else "classify"
    load_bert(order.model, kind, () if kind == "qa" else tuple(GLUE[task].labels.values()) or REGRESSION_LABELS)


def _note(order: Order, runs: Sequence[Planned], record: RunRecord, say: Callable[[str], None], method: str) -> None:
    """Tell what a method came to, and bring the reports up to date."""
    title = BASELINES[method].title if method in BASELINES else method
    if method in record.errors:
        say(f"  {title}: FAILED, {record.errors[method]}")
    else:
        scores = ", ".join(f"{name} {record.scores[method][name]:.4f}" for name in metrics_of(record.task))
        say(f"  {title}: {scores} ({record.seconds[method]:.0f} s)")
    _write_reports(order, runs)


def _left(runs: Sequence[Planned], todo: Sequence[Planned]) -> str:
    if not todo:
        return "nothing left"
    seconds = remaining([(run.record, run.settings, run.facts) for run in runs], [run.record for run in todo])
    if seconds is None:
        return f"{len(todo)} left"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{len(todo)} left, about {f'{hours} h ' if hours else ''}{minutes} min (until {_clock(seconds)})"


def _clock(seconds: float) -> str:
    return time.strftime("%a %H:%M", time.localtime(time.time() + seconds))


def _write_reports(order: Order, runs: Sequence[Planned]) -> None:
    """Write table, JSON and picture of every run that lies in the output folder."""
    order.output.mkdir(parents=True, exist_ok=True)
    planned = {(run.record.task, run.record.seed): run.record for run in runs}
    on_disk = load_records(order.output / "runs")
    records = [planned.get((record.task, record.seed), record) for record in on_disk]
    machine, rows = environment(), summarize(records)
    base = _name(order.model)
    table = markdown(Report(base, order.scheme, machine, records, len(runs)))
    _replace(order.output / TABLE_FILE, table)
    document = {
        "base": base,
        "scheme": order.scheme,
        "planned_runs": len(runs),
        "environment": machine,
        "methods": {name: method.about for name, method in BASELINES.items()},
        "summary_in_percent": [row.to_dict() for row in rows],
        "runs": [record.to_dict() for record in records],
    }
    _replace(order.output / RESULTS_FILE, json.dumps(document, indent=1) + "\n")
    if order.plot and any(len(row.cells) > 1 for row in rows):
        from q8core.reproduce.plot import plot_errors

        plot_errors(rows, base, machine, order.output / PLOT_FILE)


def _replace(file: Path, text: str) -> None:
    part = file.with_name(f"{file.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)


def _base(model: str) -> dict[str, str]:
    """Name and digest of the base model: another one under the same name is another run."""
    weights = model_folder(model) / FLOAT_FILE
    if not weights.is_file():
        raise InputError(f"--model {model}: no {FLOAT_FILE}")
    with weights.open("rb") as file:
        return {"name": _name(model), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _name(model: str) -> str:
    return Path(model).name


def _versions() -> dict[str, Any]:
    machine = environment()
    return {"q8bert": version("q8bert"), **{name: machine[name] for name in ("torch", "transformers", "python", "cpu")}}
