"""Times int8 kernels on one layer of a model's own sizes, and notices when others disturbed that."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from q8core.engines.choice.busy import ForeignTime
from q8core.engines.choice.int8_kernels import Int8Kernel
from q8core.engines.choice.random_weights import RandomInt8
from q8core.engines.packing import TokenBatch
from q8core.engines.tensors.source import TensorSource
from q8core.model.head import HeadSpec
from q8core.model.sites import HEAD_OUTPUT, LAYER_LINEARS, PRODUCTS
from q8core.quant import Scheme
from q8core.quant.plan import Plan

ROWS = (16, 128)
"""Token counts to time: a short sentence and a small batch."""

Microseconds = dict[str, dict[int, float]]
"""Kernel -> token count -> least time."""

_ROUNDS = 5
_LEAST_SECONDS = 0.3
"""The system counts CPU time in steps of 10 ms."""
_MOST_SECONDS = 1.5
_DISTURBED = 0.15


@dataclass(frozen=True)
class Measurement:
    """What the kernels took.

    Attributes:
        microseconds: kernel -> token count -> the least time of all rounds, which others disturb least.
        foreign: the share of this process's CPU time that others took meanwhile.
    """

    microseconds: Microseconds
    foreign: float = 0.0

    @property
    def disturbed(self) -> bool:
        """Whether others computed so much that the times are not worth keeping."""
        return self.foreign > _DISTURBED

    @property
    def quickest(self) -> str:
        """The kernel with the least geometric mean of its times."""
        return min(self.microseconds, key=lambda name: math.prod(self.microseconds[name].values()))


def one_layer(plan: Plan) -> Plan:
    """Return the plan of a model with the first layer of `plan` only, and small tables."""
    assert plan.scheme is not None
    spec = replace(plan.spec, layers=1, vocabulary=16, positions=max(ROWS))
    slots = {slot: plan.of_layer(0, slot).scheme for slot in (*LAYER_LINEARS, PRODUCTS)}
    slots["head_output"] = plan.sites[HEAD_OUTPUT].scheme
    scheme = Scheme("layer", {**plan.scheme.slots, **slots})
    return Plan.of(spec, HeadSpec("every", 2), scheme)


def measure_layer(kernels: Mapping[str, Int8Kernel], plan: Plan, threads: int | None = None) -> Measurement:
    """Return the times of a one-layer model; the kernels take turns, so that what disturbs them meets all."""
    models = {name: kernel.load(plan, TensorSource(RandomInt8(plan))) for name, kernel in kernels.items()}
    least: Microseconds = {name: dict.fromkeys(ROWS, math.inf) for name in kernels}
    zeros = np.zeros(max(ROWS), np.int64)
    batches = {rows: TokenBatch(zeros[:rows], zeros[:rows], (rows,)) for rows in ROWS}
    for model in models.values():  # the first pass warms up
        for batch in batches.values():
            model.logits(batch, threads)
    foreign, begin, rounds = ForeignTime(), time.monotonic(), 0
    while (elapsed := time.monotonic() - begin) < _MOST_SECONDS and (rounds < _ROUNDS or elapsed < _LEAST_SECONDS):
        for rows, batch in batches.items():
            for name, model in models.items():
                start = time.perf_counter()
                model.logits(batch, threads)
                least[name][rows] = min(least[name][rows], (time.perf_counter() - start) * 1e6)
        rounds += 1
    times = {name: {rows: round(took, 1) for rows, took in by.items()} for name, by in least.items()}
    return Measurement(times, foreign.share())
