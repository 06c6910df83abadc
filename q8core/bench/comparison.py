"""The references of a contender's times: stock transformers, the fastest peers, the matrix products alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from q8core.bench.contender import FEW_BITS, STOCK
from q8core.bench.floor import FEW_BITS_FLOORS, FLOORS
from q8core.bench.timing import Timing

FLOOR = "floor"
FP32_PEER = "fastest_fp32_peer"
INT8_PEER = "fastest_int8_peer"


def is_int8(name: str) -> bool:
    """Return whether a contender computes in 8 bits, or with weights of fewer, which its name says."""
    return "int8" in name or _has_small_weights(name)


def _has_small_weights(name: str) -> bool:
    """Return whether weights have fewer bits: answers are then further from fp32 than those of int8."""
    return "int4" in name or any(engine in name for engine in FEW_BITS)


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
        few = (floors for engine, floors in FEW_BITS_FLOORS.items() if engine in timing.engine)
        names = next(few, FLOORS[is_int8(timing.engine)])
        floors = [by_name[name] for name in names if name in by_name]
        if floors:
            own[FLOOR] = min(floors, key=lambda floor: floor.median)
        found.append(replace(timing, references={name: (t.engine, t.milliseconds) for name, t in own.items()}))
    return found
