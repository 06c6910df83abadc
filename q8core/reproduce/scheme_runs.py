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
from q8core.reproduce.record import (
    FP32,
    METHODS,
    SCHEMES_FOLDER,
    RunRecord,
    check_same,
    fine_tuning,
    load_scheme_records,
)
from q8core.training.recipe import Recipe
from q8core.training.scheme_recipes import SchemeRecipe


@dataclass(frozen=True)
class Step:
    """A scheme to train, or a stage before one.

    Attributes:
        source: the preset or file; "fp32" of a stage in float.
        scheme: the scheme itself; None of a stage in float.
        recipe: how it is trained.
        after: name of the step that it continues; None for the fine-tuned model.
    """

    source: str
    scheme: Scheme | None
    recipe: SchemeRecipe
    after: str | None


def scheme_chain(sources: Sequence[str], recipe: Recipe) -> dict[str, Step]:
    """Return the schemes and stages to train by their names, each behind the one that it comes after.

    Args:
        sources: presets or files, or names of stages in the recipe.
        recipe: the recipe of the task, which says what comes after what.

    Raises:
        SchemeError: there is no such scheme.
        InputError: a scheme needs no training, has a name that cannot be a folder's, or shares it with another one.
    """
    found: dict[str, Step] = {}

    def add(asked: str) -> str:
        stage = recipe.schemes.get(asked)
        source = asked if stage is None or stage.scheme is None else stage.scheme
        scheme = None if source == FP32 and source != asked else find_scheme(source)
        name = asked if source != asked or scheme is None else scheme.name
        _check(asked, name, scheme)
        if name in found:
            if found[name].scheme != scheme:
                raise InputError(f"{asked} and {found[name].source} are two schemes with the name {name!r}")
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
    configs: dict[str | None, ModelConfig] = {None: config}
    for name, step in chain.items():
        configs[name] = configs[step.after].narrower(step.recipe.config.width)
        Plan.of(configs[name].spec, configs[name].head(kind), step.scheme)


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
                keep_float=order.keep_float or name in followed or step.scheme is None,
                after=step.after,
                taught_by=_last_float(chain, step.after),
            )
            before = (first, of_seed[step.after], of_seed[settings.taught_by])
            needs = tuple({id(need): need for need in before}.values())
            of_seed[name] = Planned(record, settings, first.facts, (name,), needs)
        runs += of_seed.values()
    return runs


def _check(source: str, name: str, scheme: Scheme | None) -> None:
    if scheme is not None and not scheme.needs_ranges:
        raise InputError(f"--schemes names {source}, which needs no training")
    if name in METHODS or name != Path(name).name or name.startswith("."):
        raise InputError(f"{source}: a scheme with the name {name!r} has no place among the runs; rename it")


def _last_float(chain: Mapping[str, Step], name: str | None) -> str | None:
    """Return the last stage in float up to a step, which teaches what follows; None for the fine-tuned model."""
    while name is not None and chain[name].scheme is not None:
        name = chain[name].after
    return name


def _identity(name: str, chain: Mapping[str, Step]) -> dict[str, Any]:
    """Return what a scheme's scores depend on besides the fine-tuned model."""
    step = chain[name]
    return {
        "scheme": FP32 if step.scheme is None else scheme_identity(step.scheme),
        "qat": step.recipe.config.to_dict(),
        "teacher": step.recipe.teacher,
        "after": None if step.after is None else _identity(step.after, chain),
    }
