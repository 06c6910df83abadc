"""The content of a run's picture, before it is drawn: a panel per workload, a bar per contender."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from q8core.bench.comparison import is_int8
from q8core.bench.contender import OURS, STOCK
from q8core.bench.floor import FEW_BITS_FLOORS, FLOORS
from q8core.bench.threads import threads_text
from q8core.bench.timing import Ratio, Timing

_COLUMNS = 4
"""Most panels in a row."""

_ALL_FLOORS = [name for names in (*FLOORS, *FEW_BITS_FLOORS.values()) for name in names]


@dataclass(frozen=True)
class Bar:
    """A contender on a workload.

    Attributes:
        label: its name for readers who do not know the options.
        int8: whether it computes in 8 bits.
        ours: whether it is an engine of this project.
        ratio: its throughput divided by the reference's, with the quartiles over the rounds.
        milliseconds: median time of the workload.
    """

    label: str
    int8: bool
    ours: bool
    ratio: Ratio
    milliseconds: float


@dataclass(frozen=True)
class Panel:
    """A workload on a model and thread count.

    Attributes:
        group: model and threads, in words.
        workload: the workload, in words.
        bars: the contenders, fp32 first.
        floors: True for int8 -> throughput of the matrix products alone, divided by the reference's.
    """

    group: str
    workload: str
    bars: tuple[Bar, ...]
    floors: dict[bool, float]

    @property
    def furthest(self) -> float:
        """The largest value to draw."""
        return max([bar.ratio.high for bar in self.bars] + list(self.floors.values()))


def label_of(name: str) -> str:
    """Return the name of a contender in a picture."""
    return f"q8bert {name}" if name in OURS else f"{name} fp32" if name == STOCK else name


def describe_workload(name: str) -> str:
    """Return the name of a workload in a picture; `8x128` is one of 8 sequences."""
    sequences, cross, length = name.partition("x")
    return f"{sequences} \N{MULTIPLICATION SIGN} {length} tokens" if cross else f"{name}, mixed lengths"


def reference_of(timings: Sequence[Timing]) -> str:
    """Return the reference of the others: stock transformers, or the first contender."""
    names = [timing.engine for timing in timings]
    return STOCK if STOCK in names else names[0]


def panel_rows(timings: Sequence[Timing]) -> list[list[Panel]]:
    """Return the panels of a run row by row; each model and thread count starts a new row."""
    rows: list[list[Panel]] = []
    for (model, threads), group in groupby(timings, key=lambda timing: (timing.model, timing.threads)):
        title = f"{model}, {threads_text((threads,))}"
        panels = [_panel(title, name, list(same)) for name, same in groupby(group, key=lambda timing: timing.workload)]
        lines = math.ceil(len(panels) / _COLUMNS)
        columns = math.ceil(len(panels) / lines)  # lines of about the same length
        rows += [panels[start : start + columns] for start in range(0, len(panels), columns)]
    return rows


def _panel(group: str, workload: str, timings: Sequence[Timing]) -> Panel:
    reference = next(timing for timing in timings if timing.engine == reference_of(timings))
    ratios = {timing.engine: _over(timing, reference) for timing in timings}
    contenders = [timing for timing in timings if timing.engine not in _ALL_FLOORS]
    floors: dict[bool, float] = {}
    for int8 in (False, True):
        found = [ratios[name].median for name in FLOORS[int8] if name in ratios]
        if found:
            floors[int8] = max(found)  # the faster one is the floor
    return Panel(
        group,
        describe_workload(workload),
        tuple(
            Bar(label_of(each.engine), is_int8(each.engine), each.engine in OURS, ratios[each.engine], each.median)
            for each in sorted(contenders, key=lambda timing: is_int8(timing.engine))
        ),
        floors,
    )


def _over(timing: Timing, reference: Timing) -> Ratio:
    compared = replace(timing, references={"reference": (reference.engine, reference.milliseconds)})
    ratio = compared.faster_than("reference")
    assert ratio is not None
    return ratio
