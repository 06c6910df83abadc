"""The grid of a weight by the rule of its quantizer: one definition for training, calibration and conversion."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from q8core.errors import CalibrationError
from q8core.quant.ops.arithmetic import integer_limits, per_row, scale_from_threshold
from q8core.quant.ops.passes import row_magnitudes, row_sides, to_grid
from q8core.quant.qat.fake_quant import gated
from q8core.quant.quantizer import Quantizer
from q8core.quant.rules.mean import mean_scale, signs
from q8core.quant.rules.mse import mse_scale, mse_turn
from q8core.quant.rules.split import Levels, split, split_grid, split_integers
from q8core.quant.rules.twn import ternary, ternary_grid

_PULL = 0.1
"""Of the way to the steps with the least squared error, what a training step of rule "learned_mse" goes."""
_SEARCH_EVERY = 50
"""Training steps from one whole search for the steps of rule "mse" to the next; the others make a single turn."""


class Halves(NamedTuple):
    """What a split weight's two signs are of, and what they mean.

    Attributes:
        difference: float32 (rows, columns), the first half of each value less its second one.
        levels: those of all rows.
    """

    difference: Tensor
    levels: Levels


class WeightGrid(NamedTuple):
    """The grid of a weight: a value for all rows, for each group of rows, or for each row.

    Attributes:
        scale: float32 (scales,), the steps.
        zero_point: float32 integers (scales,) of an asymmetric grid; None for a symmetric one.
        border: float32 (scales,), the least magnitude that is not 0, of rule "twn"; else None.
        halves: what a split grid has besides; else None.
    """

    scale: Tensor
    zero_point: Tensor | None = None
    border: Tensor | None = None
    halves: Halves | None = None

    def rows(self, count: int) -> WeightGrid:
        """Return the grid with a value for each of so many rows; a single value stays as it is."""
        zero_point, border = (None if each is None else spread(each, count) for each in (self.zero_point, self.border))
        return WeightGrid(spread(self.scale, count), zero_point, border, self.halves)

    def of(self, ids: Tensor) -> WeightGrid:
        """Return the grid of some rows; it must have a value for each row, or a single one."""
        if len(self.scale) == 1:
            return self
        zero_point, border = (None if each is None else each[ids] for each in (self.zero_point, self.border))
        return WeightGrid(self.scale[ids], zero_point, border)


def spread(values: Tensor, rows: int) -> Tensor:
    """Return one value for each row, from one for each group of rows; a single one stays as it is."""
    return values if len(values) in (1, rows) else values.repeat_interleave(rows // len(values))


def weight_grid(weight: Tensor, quantizer: Quantizer, path: str) -> WeightGrid:
    """Return the grid of a weight (rows, columns), detached, as it is deployed; learned steps start from it.

    Raises:
        CalibrationError: if the weight of the module at `path` has an infinite or NaN value.
    """
    try:
        return _grid(weight, quantizer)
    except CalibrationError:  # not a negative magnitude: there are none
        raise CalibrationError(f"{path}.weight has infinite or NaN values") from None


def _grid(weight: Tensor, quantizer: Quantizer) -> WeightGrid:
    scopes = quantizer.scales(len(weight))
    rows = weight.reshape(scopes, -1)
    if quantizer.grid == "asymmetric":
        low, high = (side.reshape(scopes, -1).amax(dim=1) for side in row_sides(weight))
        most = 2**quantizer.bits - 1
        scale = scale_from_threshold(low + high, most)
        return WeightGrid(scale, (low * scale.reciprocal()).round_().clamp_(max=most))
    if quantizer.rule == "mean":
        return WeightGrid(mean_scale(rows))
    if quantizer.rule == "twn":
        scale, border = ternary_grid(rows)
        return WeightGrid(scale, border=border)
    if quantizer.rule == "max":
        threshold = row_magnitudes(weight).reshape(scopes, -1).amax(dim=1)
        return WeightGrid(scale_from_threshold(threshold, quantizer.largest))
    return WeightGrid(mse_scale(rows, quantizer.largest))


def weight_integers(weight: Tensor, quantizer: Quantizer, grid: WeightGrid, dtype: torch.dtype) -> Tensor:
    """Return the integers (rows, columns) of a weight, zero points taken off, in a dtype that holds them exactly.

    Args:
        weight: float32 (rows, columns), detached.
        quantizer: the weight's.
        grid: with a single value, or one for each row.
        dtype: the result's dtype.
    """
    if grid.halves is not None:
        return split_integers(weight, *grid.halves).to(dtype)
    if quantizer.rule == "mean":
        return signs(weight).to(dtype)
    if grid.border is not None:
        return ternary(weight, grid.border).to(dtype)
    if grid.zero_point is None:
        return to_grid(weight, per_row(grid.scale), dtype, bits=quantizer.bits)
    low, high = weight_limits(quantizer, grid)
    return (weight * per_row(grid.scale).reciprocal()).round_().clamp_(low, high).to(dtype)


def weight_limits(quantizer: Quantizer, grid: WeightGrid) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest integer of each row, (rows, 1) or (1, 1) float32."""
    if grid.zero_point is not None:
        zero = per_row(grid.zero_point)
        return -zero, 2**quantizer.bits - 1 - zero
    low, high = (torch.full((1, 1), float(limit)) for limit in integer_limits(None, quantizer.bits))
    return low.to(grid.scale.device), high.to(grid.scale.device)


class WeightSteps(nn.Module):
    """What training keeps of a weight's grid from step to step, with its gradients.

    With rule "learned" it has a parameter `log_step` (scales,), the logarithms of the steps: they stay positive, and an
    update is a relative change (LSQ, Esser et al., 2020, which learns the steps themselves). With rule "learned_mse",
    each training step first moves it towards the steps with the least squared error. With rule "mse" it has a
    buffer `before` (scales,), the steps of the training step before, 0 before the first. With a split grid it has a
    buffer `difference` (rows, columns), of the halves of the weight that it was made with.

    Args:
        weight: float32 (rows, columns).
        quantizer: the weight's.
        path: the site's name.
        follows: whether training's steps of rule "mse" start from those before, instead of a whole search each time.
    """

    before: Tensor
    difference: Tensor

    def __init__(self, weight: Tensor, quantizer: Quantizer, path: str, *, follows: bool) -> None:
        super().__init__()
        self.quantizer, self.path = quantizer, path
        self.follows = follows and quantizer.rule == "mse"
        self.log_step: nn.Parameter | None = None
        if quantizer.learns:
            self.log_step = nn.Parameter(weight_grid(weight.detach(), quantizer, path).scale.log())
        if self.follows:
            self.register_buffer("before", torch.zeros(quantizer.scales(len(weight))))
        self.splits = quantizer.grid == "split"
        if self.splits:
            halves = split(weight.detach().reshape(quantizer.scales(len(weight)), -1))
            self.register_buffer("difference", halves.to(torch.float32).reshape(weight.shape))

    @torch.no_grad()
    def grid(self, weight: Tensor, step: int | None = None) -> WeightGrid:
        """Return the grid of a weight (rows, columns), detached.

        Args:
            weight: as it is deployed.
            step: in training, the number of the step from 0 on; without it, the grid does not depend on steps before.

        Raises:
            CalibrationError: if the weight is infinite or NaN.
        """
        if self.log_step is not None:
            if step is not None and self.quantizer.rule == "learned_mse":
                rows = weight.reshape(len(self.log_step), -1)
                best = mse_turn(rows, self.log_step.exp(), self.quantizer.largest)
                self.log_step.lerp_(best.log(), _PULL)
            return WeightGrid(self.log_step.detach().exp())
        if self.splits:
            return self._of_halves(weight)
        if step is None or not self.follows:
            return weight_grid(weight, self.quantizer, self.path)
        if step % _SEARCH_EVERY == 0 or not bool(self.before.any()):
            self.before.copy_(weight_grid(weight, self.quantizer, self.path).scale)
        else:
            self.before.copy_(mse_turn(weight.reshape(len(self.before), -1), self.before, self.quantizer.largest))
        return WeightGrid(self.before.clone())

    def _of_halves(self, weight: Tensor) -> WeightGrid:
        scopes = self.quantizer.scales(len(weight))
        try:
            scale, levels = split_grid(weight.reshape(scopes, -1), self.difference.reshape(scopes, -1))
        except CalibrationError:
            raise CalibrationError(f"{self.path}.weight has infinite or NaN values") from None
        return WeightGrid(scale, halves=Halves(self.difference, levels))

    def gated(self, weight: Tensor, grid: WeightGrid, smoothing: Tensor | None = None) -> Tensor:
        """Return the weight (rows, columns), whose gradient goes on as the quantizer says, to the steps too.

        Args:
            weight: the master weight.
            grid: with a single value, or one for each row.
            smoothing: (columns,), the factors that multiply the weight before it is quantized.
        """
        log_step = None if self.log_step is None else spread(self.log_step, len(weight))
        return self.gated_rows(weight, grid, log_step, smoothing)

    def gated_rows(
        self, rows: Tensor, grid: WeightGrid, log_step: Tensor | None, smoothing: Tensor | None = None
    ) -> Tensor:
        """Return `gated` of some rows; `log_step` is that of each of them, or a single one."""
        masked = self.quantizer.gradient == "masked"
        if log_step is None and not masked:
            return rows
        steps = per_row(grid.scale)
        return gated(
            rows,
            log_step,
            steps=steps if smoothing is None else steps / smoothing,
            limits=weight_limits(self.quantizer, grid),
            masked=masked,
        )
