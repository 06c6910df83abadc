"""The squared error of a matrix on a grid of few bits: symmetric, with the best step for each output row."""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDS = 10


def squared_error(weight: Tensor, bits: int) -> float:
    """Return the sum of (w - its value on the grid)^2 over a weight (rows, columns), for steps that minimise it."""
    weight = weight.detach()
    largest = 2 ** (bits - 1) - 1
    return float(_errors(weight, _mse_scale(weight, largest), largest).sum())


def _mse_scale(weight: Tensor, largest: int) -> Tensor:
    """Return the step of each row, (rows,) for a weight (rows, columns), that minimises the row's squared error.

    It is a fixed point: the integers of a step have one best step, which has integers of its own. Two starts, because
    each ends in a minimum near it: that of LSQ (Esser et al., 2020) clips, the largest magnitude does not and is right
    for many bits. So no row is worse than with the largest magnitude. A row of zeros has step 1.

    Args:
        weight: (rows, columns).
        largest: the largest integer of the grid.
    """
    magnitudes = weight.abs()
    widest = magnitudes.amax(dim=1) / largest
    zero = widest == 0
    starts = (torch.where(zero, 1.0, widest), torch.where(zero, 1.0, 2 * magnitudes.mean(dim=1) / largest**0.5))
    found = [_refined(weight, start, largest) for start in starts]
    first, second = (_errors(weight, scale, largest) for scale in found)
    return torch.where(first <= second, *found)


def _refined(weight: Tensor, scale: Tensor, largest: int) -> Tensor:
    for _ in range(_ROUNDS):
        q = _integers(weight, scale, largest)
        squares = q.square().sum(dim=1)
        scale = torch.where(squares > 0, (weight * q).sum(dim=1) / squares, scale)  # no integer but 0: as it is
    return scale


def _integers(weight: Tensor, scale: Tensor, largest: int) -> Tensor:
    return (weight / scale.unsqueeze(1)).round_().clamp_(-largest, largest)


def _errors(weight: Tensor, scale: Tensor, largest: int) -> Tensor:
    """Return the squared error of each row, float64 (rows,)."""
    difference = weight - _integers(weight, scale, largest) * scale.unsqueeze(1)
    return difference.square().sum(dim=1, dtype=torch.float64)
