"""Measures how far two models' answers to the same inputs differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from q8core.tasks.qa import Answer

Array = NDArray[np.floating[Any]]

SAME_NUMBER = 0.1
"""Two numbers are the same answer if they differ by no more than this share of the first model's standard deviation."""
# The 97.5 % point of the normal distribution: 95 % lie within it on both sides.
_Z = 1.959963984540054


@dataclass(frozen=True)
class Agreement:
    """How often two models give the same answer, and by how much their scores differ.

    Attributes:
        compared: number of inputs.
        agreed: number of inputs with the same answer: the same top label (or the same labels above 0.5), exactly the
            same span, or nearly the same number (`SAME_NUMBER`).
        mean_difference: mean over inputs of the difference in scores: the largest difference of a label's probability,
            the difference of the best spans' scores, or that of the numbers.
        largest_difference: the largest such difference.
    """

    compared: int
    agreed: int
    mean_difference: float
    largest_difference: float

    @property
    def share(self) -> float:
        """The share of inputs with the same answer, 0 to 1."""
        return self.agreed / self.compared

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the share (`wilson_interval`)."""
        return wilson_interval(self.agreed, self.compared)

    def describe(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "compared": self.compared,
            "agreed": self.agreed,
            "agreement": self.share,
            "agreement_ci95": list(self.interval),
            "mean_difference": self.mean_difference,
            "largest_difference": self.largest_difference,
        }

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.share:.2%} of {self.compared} answers are those of fp32 (95 % interval {low:.2%} to {high:.2%}), "
            f"scores differ by {self.mean_difference:.4f} on average, {self.largest_difference:.4f} at most"
        )


def label_agreement(reference: Array, other: Array, *, several: bool = False) -> Agreement:
    """Compare the logits (inputs, labels) of two classifiers.

    Args:
        reference: the first model's logits.
        other: the second model's logits.
        several: whether a text has several labels at once, each above a probability of 0.5.
    """
    first, second = (_sigmoid(x) if several else _softmax(x) for x in (reference, other))
    chosen = (first > 0.5, second > 0.5) if several else (first.argmax(axis=1)[:, None], second.argmax(axis=1)[:, None])
    return _agreement((chosen[0] == chosen[1]).all(axis=1), np.abs(first - second).max(axis=1))


def number_agreement(reference: Array, other: Array) -> Agreement:
    """Compare the numbers (inputs,) that two models predict."""
    difference = np.abs(reference.astype(np.float64) - other)
    return _agreement(difference <= SAME_NUMBER * reference.astype(np.float64).std(), difference)


def answer_agreement(reference: Sequence[Answer], other: Sequence[Answer]) -> Agreement:
    """Compare the best answers of two models to the same questions."""
    pairs = list(zip(reference, other, strict=True))
    same = np.array([(a.start, a.end) == (b.start, b.end) for a, b in pairs])
    return _agreement(same, np.array([abs(a.score - b.score) for a, b in pairs]))


def wilson_interval(hits: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion (Wilson 1927), which unlike the normal one stays within 0 to 1."""
    if not total:
        return 0.0, 1.0
    share, z2 = hits / total, _Z * _Z
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total)) / (1 + z2 / total)
    # at both ends the exact bound is the end itself
    return (0.0 if hits == 0 else max(0.0, centre - half)), (1.0 if hits == total else min(1.0, centre + half))


def _agreement(same: NDArray[np.bool_], differences: Array) -> Agreement:
    return Agreement(len(same), int(same.sum()), float(differences.mean()), float(differences.max()))


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _sigmoid(logits: Array) -> Array:
    small = np.exp(-np.abs(logits.astype(np.float64)))  # exp of -|x| cannot overflow
    return np.where(logits >= 0, 1.0, small) / (1.0 + small)
