"""Buckets of relative positions: short distances have one each, long ones share buckets on a logarithmic scale.

Source: T5 (Raffel et al., 2020), as used by MPNet (Song et al., 2020): half of the buckets are for keys after the
query, half for keys before it.
"""

from __future__ import annotations

from functools import lru_cache

MAX_DISTANCE = 128
"""Distances from this one on share the last bucket."""


def bucket(distance: int, buckets: int, max_distance: int = MAX_DISTANCE) -> int:
    """Return the bucket, from 0 to buckets - 1, of a key at `distance` (its index less the query's).

    With n the distance's magnitude, h = buckets / 2 and e = h / 2, it is n if n < e, else
    min(h - 1, e + floor(log(n / e) / log(max_distance / e) * (h - e))), plus h for a key after the query.
    """
    half = buckets // 2
    exact, n = half // 2, abs(distance)
    first = half if distance > 0 else 0
    if n < exact:
        return first + n
    # (n / e)^(h - e) >= (max_distance / e)^step in integers: a float logarithm may be off by one bit at equality
    steps = half - exact
    step = 0
    while step < steps - 1 and n**steps >= max_distance ** (step + 1) * exact ** (steps - step - 1):
        step += 1
    return first + exact + step


@lru_cache(maxsize=64)
def buckets_by_distance(length: int, buckets: int) -> tuple[int, ...]:
    """Return the buckets of all distances in a sequence: 2 * length - 1 of them, from 1 - length to length - 1."""
    return tuple(bucket(distance, buckets) for distance in range(1 - length, length))
