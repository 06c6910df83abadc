"""Batches of features in order of their length: little padding, or few tokens at once."""

from __future__ import annotations

from collections.abc import Sequence


def sorted_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices in order of length, as many a batch as fit ``max_tokens`` with padding; for evaluation."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[index] <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
