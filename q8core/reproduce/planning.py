"""The runs of a command: everything that can be checked without training is checked here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from q8core.bench.environment import environment
from q8core.checkpoint.float_source import FloatSource
from q8core.checkpoint.text_input import checked_tokenizer
from q8core.errors import InputError
from q8core.quant import PRESETS, Scheme, find_scheme
from q8core.reproduce.data import DataFacts, DataSource, check_tasks
from q8core.reproduce.methods import CALIBRATION_EXAMPLES
from q8core.reproduce.record import RunRecord, check_same, load_records
from q8core.reproduce.run import RunSettings
from q8core.tasks.examples import REGRESSION_LABELS
from q8core.tasks.glue import GLUE
from q8core.tasks.labels import Classes, official_classes
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
        record = earlier.get(seed) or RunRecord(folder, task, seed, identity, versions=versions_here())
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


def base_name(model: str) -> str:
    """Return the name of the base model in tables."""
    return Path(model).absolute().name if Path(model).is_dir() else model


def versions_here() -> dict[str, Any]:
    """Return the versions and the CPU that a run's record names."""
    machine = environment()
    return {"q8bert": version("q8bert"), **{name: machine[name] for name in ("torch", "transformers", "python", "cpu")}}
