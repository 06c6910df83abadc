"""Batches of features sorted by length, for little padding."""

from __future__ import annotations

from collections.abc import Sequence


def sorted_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Return indices sorted by length, in batches of at most ``max_tokens`` with padding; for evaluation."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[index] <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
