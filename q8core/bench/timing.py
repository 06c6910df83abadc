"""Comparable times: in one process, with the same threads, the contenders taking turns.

The speed of a shared machine drifts by tens of percent within minutes. Ratios are therefore taken inside each round,
where the contenders ran right after each other, and the median ratio is reported. Threads of one runtime spin for a
moment after their work and would occupy the next one's cores: each turn begins with a pause and an untimed batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import NamedTuple

from q8core.bench.contender import STOCK, Contender
from q8core.bench.workloads import Workload

PERCENTILES = (50, 95, 99)

_PAUSE_SECONDS = 0.02


class Ratio(NamedTuple):
    """The median of the rounds' ratios, with the first and third quartile."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Timing:
    """Times of one contender on one workload, in the order taken.

    Attributes:
        model: the shape of the model.
        workload: the workload's name.
        engine: the contender's name.
        threads: CPU threads it ran on.
        tokens: real tokens of the workload.
        milliseconds: times of the whole workload, one per round.
        batch_milliseconds: times of each batch of each round.
        references: reference -> (contender, its milliseconds in the same rounds).
    """

    model: str
    workload: str
    engine: str
    threads: int
    tokens: int
    milliseconds: tuple[float, ...]
    batch_milliseconds: tuple[float, ...] = ()
    references: Mapping[str, tuple[str, tuple[float, ...]]] = field(
        default_factory=dict[str, tuple[str, tuple[float, ...]]]
    )

    @property
    def median(self) -> float:
        """The median time of the workload."""
        return median(self.milliseconds)

    @property
    def spread(self) -> tuple[float, float]:
        """The first and third quartiles of the times."""
        return _quartiles(self.milliseconds)

    @property
    def tokens_per_second(self) -> float:
        """Real tokens divided by the median time."""
        return self.tokens / self.median * 1000

    @property
    def latencies(self) -> dict[str, float]:
        """Percentiles of a batch's time over all rounds, by linear interpolation: p50, p95, p99."""
        return {f"p{p}": _percentile(self.batch_milliseconds or self.milliseconds, p) for p in PERCENTILES}

    def faster_than(self, reference: str) -> Ratio | None:
        """Return how many times faster than the reference it is, None if there is no such reference."""
        if reference not in self.references:
            return None
        theirs = self.references[reference][1]
        return _ratio([their / own for their, own in zip(theirs, self.milliseconds, strict=True)])

    def over(self, reference: str) -> Ratio | None:
        """Return its time divided by the reference's, None if there is no such reference."""
        if reference not in self.references:
            return None
        theirs = self.references[reference][1]
        return _ratio([own / their for their, own in zip(theirs, self.milliseconds, strict=True)])

    def _against(self, reference: str) -> dict[str, object]:
        faster, over = self.faster_than(reference), self.over(reference)
        assert faster is not None
        assert over is not None
        return {
            "contender": self.references[reference][0],
            "times_faster": faster.median,
            "times_faster_quartiles": [faster.low, faster.high],
            "times_its_time": over.median,
            "times_its_time_quartiles": [over.low, over.high],
        }

    def to_dict(self) -> dict[str, object]:
        """Return the times and derived values as plain JSON values."""
        stock = self.faster_than(STOCK)
        return {
            "model": self.model,
            "workload": self.workload,
            "engine": self.engine,
            "threads": self.threads,
            "median_ms": self.median,
            "quartiles_ms": list(self.spread),
            "tokens_per_second": self.tokens_per_second,
            "batch_percentiles_ms": self.latencies,
            "milliseconds": list(self.milliseconds),
            "ratio_to_transformers": None if stock is None else stock.median,
            "ratio_quartiles": None if stock is None else [stock.low, stock.high],
            "ratios": {name: self._against(name) for name in self.references},
        }


def take_turns(
    model: str,
    threads: int,
    contenders: Mapping[str, Contender],
    workload: Workload,
    vocabulary: int,
    repeats: int,
    on_round: Callable[[], None] = lambda: None,
) -> list[Timing]:
    """Time contenders, loaded for `threads`, on one workload in `repeats` rounds; the first one of a round rotates."""
    batches = workload.batches(vocabulary)
    calls = {name: [contender.bind(batch) for batch in batches] for name, contender in contenders.items()}
    for runs in calls.values():  # the first calls allocate buffers and choose code
        for run in runs * 2:
            run()
    taken: dict[str, list[list[float]]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(_PAUSE_SECONDS)
            calls[name][0]()
            taken[name].append([_milliseconds(run) for run in calls[name]])
        on_round()
    return [
        Timing(
            model,
            workload.name,
            name,
            threads,
            workload.tokens,
            tuple(sum(batch) for batch in rounds),
            tuple(time for batch in rounds for time in batch),
        )
        for name, rounds in taken.items()
    ]


def _milliseconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return (time.perf_counter() - begin) * 1000


def _ratio(values: Sequence[float]) -> Ratio:
    return Ratio(median(values), *_quartiles(values))


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    return _percentile(values, 25), _percentile(values, 75)


def _percentile(values: Sequence[float], percent: int) -> float:
    if len(values) == 1:
        return values[0]
    return quantiles(values, n=100, method="inclusive")[percent - 1]
