"""The runs of `--schemes`: after each fine-tuned model one for each scheme, and for what the scheme comes after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from q8core.checkpoint.config import ModelConfig
from q8core.errors import InputError
from q8core.model.head import TaskKind
from q8core.quant import Plan, Scheme, find_scheme
from q8core.reproduce.planned import Order, Planned, scheme_identity, versions_here
from q8core.reproduce.record import METHODS, SCHEMES_FOLDER, RunRecord, check_same, fine_tuning, load_scheme_records
from q8core.training.recipe import Recipe
from q8core.training.scheme_recipes import SchemeRecipe


@dataclass(frozen=True)
class Step:
    """A scheme to train.

    Attributes:
        source: the preset or file.
        scheme: the scheme itself.
        recipe: how it is trained.
        after: name of the scheme that it continues; None for the fine-tuned model.
    """

    source: str
    scheme: Scheme
    recipe: SchemeRecipe
    after: str | None


def scheme_chain(sources: Sequence[str], recipe: Recipe) -> dict[str, Step]:
    """Return the schemes to train by their names, each behind the one that it comes after.

    Args:
        sources: presets or files.
        recipe: the recipe of the task, which says what comes after what.

    Raises:
        SchemeError: there is no such scheme.
        InputError: a scheme needs no training, has a name that cannot be a folder's, or shares it with another one.
    """
    found: dict[str, Step] = {}

    def add(source: str) -> str:
        scheme = find_scheme(source)
        name = scheme.name
        _check(source, scheme)
        if name in found:
            if found[name].scheme != scheme:
                raise InputError(f"{source} and {found[name].source} are two schemes with the name {name!r}")
            return name
        own = recipe.of_scheme(name)
        after = add(own.after) if own.after else None
        found[name] = Step(source, scheme, own, after)
        return name

    for source in sources:
        add(source)
    return found


def check_schemes(chain: Mapping[str, Step], config: ModelConfig, kind: TaskKind) -> None:
    """Refuse schemes that do not fit a model.

    Raises:
        SchemeError: says which of its settings.
    """
    for step in chain.values():
        Plan.of(config.spec, config.head(kind), step.scheme)


def scheme_runs(order: Order, fine_tuned: Sequence[Planned], chain: Mapping[str, Step]) -> list[Planned]:
    """Return the runs of one task, each seed's fine-tuning before its schemes.

    Raises:
        InputError: an earlier run of one of the schemes was made with other settings.
    """
    on_disk = load_scheme_records(order.output / "runs")
    found = {(record.task, record.seed, record.methods[0]): record for record in on_disk}
    task = fine_tuned[0].record.task
    identity = fine_tuning(fine_tuned[0].record.identity)
    for record in on_disk:
        if record.task == task and record.methods[0] in chain:
            check_same(record, {**identity, **_identity(record.methods[0], chain)})
    followed = {step.after for step in chain.values()}
    runs: list[Planned] = []
    for first in fine_tuned:
        of_seed: dict[str | None, Planned] = {None: first}
        for name, step in chain.items():
            record = found.get((task, first.record.seed, name)) or RunRecord(
                first.record.folder / SCHEMES_FOLDER / name,
                task,
                first.record.seed,
                {**fine_tuning(first.record.identity), **_identity(name, chain)},
                versions=versions_here(),
                methods=(name,),
            )
            settings = replace(
                first.settings,
                scheme=step.source,
                qat=replace(step.recipe.config, seed=first.record.seed),
                teacher=step.recipe.teacher,
                keep_float=order.keep_float or name in followed,
                after=step.after,
            )
            needs = tuple({id(need): need for need in (first, of_seed[step.after])}.values())
            of_seed[name] = Planned(record, settings, first.facts, (name,), needs)
        runs += of_seed.values()
    return runs


def _check(source: str, scheme: Scheme) -> None:
    if not scheme.needs_ranges:
        raise InputError(f"--schemes names {source}, which needs no training")
    if scheme.name in METHODS or scheme.name != Path(scheme.name).name or scheme.name.startswith("."):
        raise InputError(f"{source}: a scheme with the name {scheme.name!r} has no place among the runs; rename it")


def _identity(name: str, chain: Mapping[str, Step]) -> dict[str, Any]:
    """Return what a scheme's scores depend on besides the fine-tuned model."""
    step = chain[name]
    return {
        "scheme": scheme_identity(step.scheme),
        "qat": step.recipe.config.to_dict(),
        "teacher": step.recipe.teacher,
        "after": None if step.after is None else _identity(step.after, chain),
    }
