"""Buckets of relative positions: near distances have one each, far ones share them on a logarithmic scale.

Source: T5 (Raffel et al., 2020), as MPNet (Song et al., 2020) has it: half of the buckets for keys behind the query,
half for keys before it.
"""

from __future__ import annotations

from functools import lru_cache

MAX_DISTANCE = 128
"""From here on, all distances share the last bucket."""


def bucket(distance: int, buckets: int, max_distance: int = MAX_DISTANCE) -> int:
    """Return the bucket, from 0 to buckets - 1, of a key at `distance` (its index less the query's).

    With n the distance's magnitude, h = buckets / 2 and e = h / 2, it is n below e, and from there on
    min(h - 1, e + floor(log(n / e) / log(max_distance / e) * (h - e))), plus h for a key behind the query.
    """
    half = buckets // 2
    exact, n = half // 2, abs(distance)
    first = half if distance > 0 else 0
    if n < exact:
        return first + n
    # (n / e)^(h - e) >= (max_distance / e)^step in whole numbers: a float logarithm may miss the equality by a bit
    steps = half - exact
    step = 0
    while step < steps - 1 and n**steps >= max_distance ** (step + 1) * exact ** (steps - step - 1):
        step += 1
    return first + exact + step


@lru_cache(maxsize=64)
def buckets_by_distance(length: int, buckets: int) -> tuple[int, ...]:
    """Return the buckets of all distances in a sequence: 2 * length - 1 of them, from 1 - length to length - 1."""
    return tuple(bucket(distance, buckets) for distance in range(1 - length, length))
