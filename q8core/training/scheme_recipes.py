"""Recipes of single schemes: what a recipe's tables `[schemes.NAME]` change of its `[qat]`.

A table has fields of :class:`~q8core.training.config.TrainConfig`; `teacher`, whether a float model teaches, in place
of the recipe's own; and `after`, another scheme, from whose float weights training starts instead of those of the
fine-tuned model. NAME and `after` name a preset, or the file of a scheme beside the recipe.

A stage on the way to a scheme has a name of its own, which other tables name in `after`, and its scheme in `scheme`:
"fp32" there is training in float, such as of a narrower model (`width`). The teacher is the last float model before a
scheme or stage; without such a stage that is the fine-tuned one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from q8core.documents import validated
from q8core.errors import InputError, SchemeError
from q8core.quant import PRESETS, find_scheme
from q8core.training.config import TrainConfig

FLOAT = "fp32"
"""What `scheme` says of a stage that is trained in float."""


@dataclass(frozen=True)
class SchemeRecipe:
    """How a model is trained with one scheme.

    Attributes:
        config: the hyperparameters.
        teacher: whether the last float model before it teaches.
        scheme: the scheme, a preset or a file, or "fp32", of a stage with a name of its own; None of a scheme.
        after: the scheme or stage from whose trained model it starts: a preset, a file, or the stage's name; None for
            the fine-tuned model.
        table: where it stands, such as `sst2.toml, [schemes.qbert-2]`; empty for the recipe's `[qat]`.
        changes: the fields of the table.
    """

    config: TrainConfig
    teacher: bool
    scheme: str | None = None
    after: str | None = None
    table: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class _Table(TrainConfig):
    """A table of a file, with what `[qat]` adds to it."""

    teacher: bool | None = None
    scheme: str | None = None
    after: str | None = None


def read_scheme_recipes(
    tables: Mapping[str, Mapping[str, Any]], qat: Mapping[str, Any], teacher: bool, file: Path
) -> dict[str, SchemeRecipe]:
    """Return the recipe of each scheme that has a table, by the scheme's name, and of each stage, by its own.

    Args:
        tables: the tables by their names in the file.
        qat: the fields of `[qat]`.
        teacher: the recipe's own `teacher`.
        file: the recipe.

    Raises:
        InputError: an unknown key, value or scheme, a scheme that needs no training, two tables for one scheme, a stage
            with a scheme's name, or tables that come after each other in a circle; names the file.
    """
    found: dict[str, SchemeRecipe] = {}
    stages = {key for key, changes in tables.items() if "scheme" in changes}
    for key, changes in tables.items():
        where = f"{file}, [schemes.{key}]"
        table = validated(_Table, {"precision": "auto", **qat, **changes}, where)
        name = _stage_name(key, where) if key in stages else _trained(key, file, where)[0]
        if name in found:
            raise InputError(f"{where}: the scheme {name!r} has a table already")
        config = TrainConfig(**{each.name: getattr(table, each.name) for each in fields(TrainConfig)})
        scheme, after = table.scheme, table.after
        if scheme not in (None, FLOAT):
            scheme = _trained(scheme, file, f"{where}: scheme")[1]
        if after is not None and after not in stages:
            after = _trained(after, file, f"{where}: after")[1]
        taught = teacher if table.teacher is None else table.teacher
        found[name] = SchemeRecipe(config, taught, scheme, after, where, dict(changes))
    for name, recipe in found.items():
        _check_chain(name, recipe, found)
    return found


def _stage_name(key: str, where: str) -> str:
    """Return the name of a stage, which must be no scheme's."""
    if key in (*PRESETS, FLOAT) or Path(key).suffix:
        raise InputError(f"{where}: a table with `scheme` needs a name of its own; {key!r} is a scheme's")
    return key


def _trained(key: str, file: Path, where: str) -> tuple[str, str]:
    """Return the name of a scheme that needs training, and the preset or the file beside the recipe that it is."""
    source = str(file.parent / key) if Path(key).suffix else key
    try:
        scheme = find_scheme(source)
    except SchemeError as error:
        raise InputError(f"{where}: {error}") from error
    if not scheme.needs_ranges:
        raise InputError(f"{where}: scheme {scheme.name!r} needs no training")
    return scheme.name, source


def _check_chain(name: str, recipe: SchemeRecipe, recipes: Mapping[str, SchemeRecipe]) -> None:
    """Refuse a scheme that comes, over others, after itself."""
    chain, last = [name], recipe
    while last is not None and last.after is not None:
        before = last.after if last.after in recipes else find_scheme(last.after).name
        chain.append(before)
        if before in chain[:-1]:
            raise InputError(f"{recipe.table}: schemes come after each other in a circle: {' after '.join(chain)}")
        last = recipes.get(before)
