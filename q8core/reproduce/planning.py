"""The runs of a command: everything that can be checked without training is checked here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from q8core.checkpoint.float_source import FloatSource
from q8core.checkpoint.text_input import checked_tokenizer
from q8core.errors import InputError
from q8core.quant import find_scheme
from q8core.reproduce.data import DataFacts, DataSource, check_tasks
from q8core.reproduce.methods import CALIBRATION_EXAMPLES
from q8core.reproduce.planned import Order, Planned, scheme_identity, versions_here
from q8core.reproduce.record import FP32, METHODS, RunRecord, check_same, load_records
from q8core.reproduce.run import RunSettings
from q8core.reproduce.scheme_runs import check_schemes, scheme_chain, scheme_runs
from q8core.tasks.examples import REGRESSION_LABELS
from q8core.tasks.glue import GLUE
from q8core.tasks.labels import Classes, official_classes
from q8core.training.identity import weights_digest
from q8core.training.model import find_source, output_order
from q8core.training.recipe import Recipe, load_recipe


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
    chains = {task: scheme_chain(order.schemes, recipe) for task, recipe in recipes.items()}
    common: dict[str, Any] = {"base": {"name": base_name(order.model), "sha256": weights_digest(order.model)}}
    if not order.schemes:
        common |= {"scheme": scheme_identity(scheme), "calibration_examples": CALIBRATION_EXAMPLES}
    found = load_records(order.output / "runs")
    for record in found:
        check_same(record, {**record.identity, **common})
    model = find_source(order.model)
    model.check_values()
    for task in tasks:
        _check_head(model, task)
        check_schemes(chains[task], model.config, "qa" if task == "squad" else "classify")
    tokenizer = checked_tokenizer(model.path, model.config)
    source = DataSource(order.data, tokenizer, model.config.spec.positions)
    facts = source.facts(tasks)
    runs: list[Planned] = []
    for task in tasks:
        fine_tuned = _runs(order, task, recipes[task], facts[task], common, found)
        runs += scheme_runs(order, fine_tuned, chains[task]) if order.schemes else fine_tuned
    return source, runs


def _runs(
    order: Order, task: str, recipe: Recipe, facts: DataFacts, common: dict[str, Any], found: Sequence[RunRecord]
) -> list[Planned]:
    """Return a task's runs of the table, or of fine-tuning alone, with their records by an earlier command."""
    methods = (FP32,) if order.schemes else METHODS
    identity = _identity(order, recipe, facts, common)
    earlier = {record.seed: record for record in found if record.task == task}
    for record in earlier.values():
        check_same(record, {**record.identity, **identity})
        if methods == METHODS:  # a run that only fine-tuned goes on with the other methods
            record.identity, record.methods = {**identity, **record.identity}, METHODS
    runs: list[Planned] = []
    for seed in range(recipe.fp32.seed, recipe.fp32.seed + (order.seeds or recipe.seeds)):
        folder = order.output / "runs" / task / f"seed-{seed}"
        made = RunRecord(folder, task, seed, identity, versions=versions_here(), methods=methods)
        configs = replace(recipe.fp32, seed=seed), replace(recipe.qat, seed=seed)
        keep = order.keep_float or bool(order.schemes)
        settings = RunSettings(order.model, order.scheme, *configs, recipe.teacher, keep)
        runs.append(Planned(earlier.get(seed, made), settings, facts, methods))
    return runs


def _identity(order: Order, recipe: Recipe, facts: DataFacts, common: dict[str, Any]) -> dict[str, Any]:
    data = {"train": facts.train, "dev": facts.dev, "sha256": facts.sha256}
    identity = {**common, "data": data, "fp32": recipe.fp32.to_dict()}
    return identity if order.schemes else {**identity, "qat": recipe.qat.to_dict(), "teacher": recipe.teacher}


def _check_head(model: FloatSource, task: str) -> None:
    """Refuse a base model whose head has other labels than a task; a pretrained model has no head."""
    if task != "squad":
        names = tuple(GLUE[task].labels.values())
        output_order(model, official_classes(names) if names else Classes(REGRESSION_LABELS))


def base_name(model: str) -> str:
    """Return the name of the base model in tables."""
    return Path(model).absolute().name if Path(model).is_dir() else model
