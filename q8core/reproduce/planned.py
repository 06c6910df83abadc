"""What a command is asked for, and its runs, in an order in which each can train from those before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from q8core.bench.environment import environment
from q8core.quant import PRESETS, Scheme
from q8core.reproduce.data import DataFacts
from q8core.reproduce.record import METHODS, RunRecord
from q8core.reproduce.run import RunSettings


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
        schemes: the schemes to compare instead of making the paper's table, presets or files; empty for the table.
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
    schemes: Sequence[str] = ()
    recipes: Path | None = None
    keep_float: bool = False
    plot: bool = False


@dataclass(frozen=True)
class Planned:
    """A planned run.

    Attributes:
        record: its record so far.
        settings: its settings.
        facts: facts about its data.
        methods: what it is to score; a record may have more.
        needs: the runs from whose float weights it trains, earlier in the list of all runs.
    """

    record: RunRecord
    settings: RunSettings
    facts: DataFacts
    methods: tuple[str, ...] = METHODS
    needs: tuple[Planned, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether it has all its scores."""
        return all(name in self.record.scores for name in self.methods)


def unfinished(runs: Sequence[Planned]) -> list[Planned]:
    """Return the runs that lack scores, or float weights that another of them needs, in the same order."""
    found: list[Planned] = []
    needed: set[int] = set()
    for run in reversed(runs):
        if not run.complete or (id(run) in needed and not run.record.weights.is_file()):
            found.append(run)
            needed |= {id(need) for need in run.needs}
    return found[::-1]


def scheme_identity(scheme: Scheme) -> str | dict[str, object]:
    """Return a preset's name, or the whole scheme if it is from a user's file, which may change."""
    return scheme.name if scheme.name in PRESETS else scheme.to_dict()


def versions_here() -> dict[str, Any]:
    """Return the versions and the CPU that a run's record names."""
    machine = environment()
    return {"q8bert": version("q8bert"), **{name: machine[name] for name in ("torch", "transformers", "python", "cpu")}}
