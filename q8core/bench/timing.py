"""Taking times so that they can be compared: one process, same threads, the engines taking turns.

A shared machine drifts by tens of percent within minutes. Ratios are therefore taken inside each round, where the
engines ran right after each other, and the median ratio is what counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import NamedTuple

import torch

from q8core.bench.contenders import STOCK, Contender
from q8core.engines import TokenBatch
from q8core.errors import InputError


class Shape(NamedTuple):
    """Sequences times tokens of each."""

    sequences: int
    length: int

    def __str__(self) -> str:
        """Return it as written on the command line: 8x128."""
        return f"{self.sequences}x{self.length}"

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read `SEQUENCESxLENGTH`.

        Raises:
            InputError: if the text has another form.
        """
        left, cross, right = text.partition("x")
        if not (cross and left.isdecimal() and right.isdecimal() and int(left) and int(right)):
            raise InputError(f"shape is {text!r}; expected SEQUENCESxLENGTH, such as 1x128")
        return cls(int(left), int(right))

    def batch(self, vocabulary: int) -> TokenBatch:
        """Return random tokens of this shape."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(vocabulary, (self.sequences * self.length,), generator=generator)
        return TokenBatch(ids, torch.zeros_like(ids), (self.length,) * self.sequences)


@dataclass(frozen=True)
class Timing:
    """Times of one engine on one shape, in milliseconds, in the order taken."""

    model: str
    shape: str
    engine: str
    milliseconds: tuple[float, ...]
    stock_milliseconds: tuple[float, ...] | None

    @property
    def median(self) -> float:
        """The median time."""
        return median(self.milliseconds)

    @property
    def spread(self) -> tuple[float, float]:
        """The first and third quartile of the times."""
        return _quartiles(self.milliseconds)

    @property
    def ratio(self) -> float | None:
        """How many times faster than stock transformers: the median over rounds."""
        return None if self.stock_milliseconds is None else median(self._ratios())

    @property
    def ratio_spread(self) -> tuple[float, float] | None:
        """The first and third quartile of the rounds' ratios."""
        return None if self.stock_milliseconds is None else _quartiles(self._ratios())

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the batch over the median time."""
        sequences, length = Shape.parse(self.shape)
        return sequences * length / self.median * 1000

    def to_dict(self) -> dict[str, object]:
        """Return the times and what follows from them as plain JSON values."""
        return {
            "model": self.model,
            "shape": self.shape,
            "engine": self.engine,
            "median_ms": self.median,
            "quartiles_ms": list(self.spread),
            "tokens_per_second": self.tokens_per_second,
            "ratio_to_transformers": self.ratio,
            "ratio_quartiles": None if self.ratio_spread is None else list(self.ratio_spread),
            "milliseconds": list(self.milliseconds),
        }

    def _ratios(self) -> list[float]:
        stock = self.stock_milliseconds or ()
        return [theirs / ours for theirs, ours in zip(stock, self.milliseconds, strict=True)]


def take_turns(
    model: str,
    contenders: Mapping[str, Contender],
    shape: Shape,
    vocabulary: int,
    repeats: int,
    on_round: Callable[[], None] = lambda: None,
) -> list[Timing]:
    """Time the contenders on one shape in `repeats` rounds; each round, another one starts."""
    batch = shape.batch(vocabulary)
    names = list(contenders)
    for name in names:  # the first call lays out buffers and picks code
        contenders[name](batch)
        contenders[name](batch)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            begin = time.perf_counter()
            contenders[name](batch)
            taken[name].append((time.perf_counter() - begin) * 1000)
        on_round()
    stock = tuple(taken[STOCK]) if STOCK in taken else None
    return [Timing(model, str(shape), name, tuple(times), stock) for name, times in taken.items()]


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high
