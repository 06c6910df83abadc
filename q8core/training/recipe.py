"""Recipes: the hyperparameters of each task as TOML files that a user can read and change.

A file has `seeds`, the number of runs of `q8bert reproduce`; `teacher`, whether quantization-aware training learns from
the model that it continues from, if that was fine-tuned for the same labels; and the tables `[fp32]` and `[qat]` with
fields of :class:`~q8core.training.config.TrainConfig`, whose defaults apply to fields that are left out.
``precision = "auto"`` is the fastest precision of this CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from q8core.documents import read_toml, shown
from q8core.errors import InputError
from q8core.training.config import TrainConfig, best_precision

PACKAGED = Path(__file__).parent / "recipes"
_TABLES = ("fp32", "qat")


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of a task.

    Attributes:
        seeds: number of runs of `q8bert reproduce`.
        fp32: hyperparameters of fine-tuning.
        qat: hyperparameters of the quantization-aware training that continues from it.
        teacher: whether that learns from the fine-tuned model instead of the labels.
    """

    seeds: int
    fp32: TrainConfig
    qat: TrainConfig
    teacher: bool

    def config(self, quantized: bool, **changes: Any) -> TrainConfig:
        """Return the hyperparameters of one of the two trainings, with all changes that are not None.

        Raises:
            InputError: a change is out of its range.
        """
        wanted = {name: value for name, value in changes.items() if value is not None}
        return replace(self.qat if quantized else self.fp32, **wanted)


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


def _read(file: Path) -> Recipe:
    document = read_toml(file)
    _check_keys(f"{file}", document, ("seeds", "teacher", *_TABLES))
    seeds = document.get("seeds", 1)
    if not _fits(seeds, int) or seeds < 1:
        raise InputError(f"{file}: seeds is {shown(seeds)}; a whole number of at least 1")
    teacher = document.get("teacher", False)
    if not isinstance(teacher, bool):
        raise InputError(f"{file}: teacher is {shown(teacher)}; true or false")
    return Recipe(seeds, *(_config(f"{file}, [{name}]", document.get(name)) for name in _TABLES), teacher=teacher)


def _config(where: str, table: object) -> TrainConfig:
    if not isinstance(table, dict):
        raise InputError(f"{where}: the table is missing")
    values = cast("dict[str, object]", table)
    hints = get_type_hints(TrainConfig)
    _check_keys(where, values, tuple(field.name for field in fields(TrainConfig)))
    values = {**values, "precision": values.get("precision", "auto")}
    if values["precision"] == "auto":
        values["precision"] = best_precision()
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise InputError(f"{where}: {name} is {shown(value)}; allowed: {_describe(hints[name])}")
    try:
        return TrainConfig(**cast("dict[str, Any]", values))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _check_keys(where: str, table: Mapping[str, object], allowed: tuple[str, ...]) -> None:
    for key in table:
        if key not in allowed:
            raise InputError(f"{where}: unknown key {shown(key)}; allowed: {', '.join(allowed)}")


def _fits(value: object, hint: Any) -> bool:
    """Whether a TOML value has a field's type; whole numbers are also floats, truth values are not numbers."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_args(hint):
        return any(_fits(value, choice) for choice in get_args(hint))
    if type(value) is int:  # within TOML's range, where every integer can be converted to a float
        return hint in (int, float) and -(2**63) <= value < 2**63
    return type(value) is hint


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(map(repr, get_args(hint))) + ", 'auto'"
    return str(getattr(hint, "__name__", hint)).replace(" | None", "")
