"""Recipes: the hyperparameters of each task as TOML files that a user can read and change.

A file has the number of `seeds` that `q8bert reproduce` trains, whether quantization-aware training has the model that
it continues from as its `teacher` where that was fine-tuned for the same labels, and the tables `[fp32]` and
`[qat]` with fields of :class:`~q8core.training.config.TrainConfig`; what a table leaves out has that class' default.
``precision`` is "auto" where it is left out. Tables `[schemes.NAME]` say what differs from `[qat]` for one scheme: see
:mod:`q8core.training.scheme_recipes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from q8core.documents import read_toml, validated
from q8core.errors import InputError
from q8core.training.config import TrainConfig
from q8core.training.scheme_recipes import SchemeRecipe, read_scheme_recipes

PACKAGED = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of a task.

    Attributes:
        seeds: number of runs of `q8bert reproduce`.
        fp32: hyperparameters of fine-tuning.
        qat: hyperparameters of the quantization-aware training that continues from it.
        teacher: whether that learns from the fine-tuned model instead of the labels.
        schemes: name of a scheme -> what holds for it instead of `qat` and `teacher`.
    """

    seeds: int
    fp32: TrainConfig
    qat: TrainConfig
    teacher: bool
    schemes: Mapping[str, SchemeRecipe] = field(default_factory=dict[str, SchemeRecipe])

    def of_scheme(self, name: str) -> SchemeRecipe:
        """Return how a model is trained with the scheme of that name."""
        return self.schemes.get(name) or SchemeRecipe(self.qat, self.teacher)


def load_recipe(task: str, folder: Path | None = None) -> Recipe:
    """Read a task's recipe.

    Args:
        task: its name on the command line.
        folder: the user's own recipes, `TASK.toml`; tasks without a file there keep the packaged one.

    Raises:
        InputError: no such recipe, an unknown key, or a value of the wrong type or out of its range; names the file.
    """
    if folder is not None:
        _check_folder(folder)
        if (folder / f"{task}.toml").is_file():
            return _read(folder / f"{task}.toml")
    if task not in known_tasks():
        raise InputError(f"there is no recipe for {task!r}; allowed: {', '.join(known_tasks())}")
    return _read(PACKAGED / f"{task}.toml")


def known_tasks() -> tuple[str, ...]:
    """Return the names of the tasks with a packaged recipe."""
    return tuple(sorted(file.stem for file in PACKAGED.glob("*.toml")))


def _check_folder(folder: Path) -> None:
    """Refuse a folder with files that would be ignored."""
    names = sorted(file.stem for file in folder.glob("*.toml"))
    if not names:
        raise InputError(f"--recipes {folder}: no such folder, or no TASK.toml in it, such as cola.toml")
    for name in names:
        if name not in known_tasks():
            raise InputError(f"{folder / name}.toml is for no task; allowed: {', '.join(known_tasks())}")


@dataclass(frozen=True)
class _Document:
    """A recipe's file; its tables are read for themselves, so that what they refuse has their names."""

    fp32: dict[str, Any]
    qat: dict[str, Any]
    seeds: Annotated[int, Field(ge=1)] = 1
    teacher: bool = False
    schemes: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])


def _read(file: Path) -> Recipe:
    found = validated(_Document, read_toml(file), f"{file}")
    fp32, qat = (
        validated(TrainConfig, {"precision": "auto", **table}, f"{file}, [{name}]")
        for name, table in (("fp32", found.fp32), ("qat", found.qat))
    )
    schemes = read_scheme_recipes(found.schemes, found.qat, found.teacher, file)
    return Recipe(found.seeds, fp32, qat, found.teacher, schemes)
