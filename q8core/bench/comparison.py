"""The references of a contender's times: stock transformers, the fastest peers, the matrix products alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from q8core.bench.contender import STOCK
from q8core.bench.floor import FLOORS
from q8core.bench.timing import Timing

FLOOR = "floor"
FP32_PEER = "fastest_fp32_peer"
INT8_PEER = "fastest_int8_peer"


def is_int8(name: str) -> bool:
    """Return whether a contender computes in 8 bits, or with weights of fewer, which its name says."""
    return "int8" in name or _has_small_weights(name)


def _has_small_weights(name: str) -> bool:
    """Return whether weights have 4 bits: a peer in memory, whose answers are further from fp32 than those of int8."""
    return "int4" in name


def with_references(timings: Sequence[Timing], peers: Collection[str]) -> list[Timing]:
    """Return the timings of one workload, each with its references; of several peers, the one with the lowest median.

    Args:
        timings: the timings of all contenders, from the same rounds.
        peers: the names of contenders that are other runtimes.
    """
    by_name = {timing.engine: timing for timing in timings}
    shared = {STOCK: by_name[STOCK]} if STOCK in by_name else {}
    for reference, int8 in ((FP32_PEER, False), (INT8_PEER, True)):
        equals = [name for name in peers if is_int8(name) == int8 and not _has_small_weights(name)]
        candidates = [timing for timing in timings if timing.engine in equals]
        if candidates:
            shared[reference] = min(candidates, key=lambda timing: timing.median)
    found: list[Timing] = []
    for timing in timings:
        own = dict(shared)
        floors = [by_name[name] for name in FLOORS[is_int8(timing.engine)] if name in by_name]
        if floors:
            own[FLOOR] = min(floors, key=lambda floor: floor.median)
        found.append(replace(timing, references={name: (t.engine, t.milliseconds) for name, t in own.items()}))
    return found
