"""How the threshold of a tensor (the largest magnitude it can represent) is chosen from data.

In training: an exponential moving average, of max|x| or of the threshold with the least error. In calibration: the
maximum over all batches, a percentile, or the threshold with the least squared quantization error; the last two read a
histogram of |x|.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

import torch
from torch import Tensor, distributed

from q8core.errors import CalibrationError, InputError
from q8core.quant.ops.arithmetic import integer_limits
from q8core.quant.ops.passes import row_magnitudes, row_sides

CalibrationMethod = Literal["max", "percentile", "mse"]


def rows_of(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the rows of `x` (..., H) as (N, H), without those where `mask` (...) is 0.

    A mask whose shape differs from that of the rows does not describe them (the pooler reads one token per
    sequence) and is not applied.
    """
    rows = x.reshape(-1, x.shape[-1])
    if mask is None or mask.shape != x.shape[:-1]:
        return rows
    return rows[mask.reshape(-1) != 0]


def abs_max(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return max|x| as a float32 scalar; rows of `x` (..., H) where `mask` (...) is 0 do not count.

    NaN in a counted row gives NaN. The mask is applied only if it has the shape of the rows (see `rows_of`).
    """
    # maxima of the rows first: masking (B, S) values is cheaper than gathering (B, S, H)
    magnitudes = row_magnitudes(x)
    if mask is not None and mask.shape == magnitudes.shape:
        magnitudes = magnitudes.masked_fill_(mask == 0, 0)
    return magnitudes.amax()


def side_maxima(x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return max(-x) and max(x), each at least 0, as float32 scalars; masks as in `abs_max`.

    NaN in a counted row makes at least one of them NaN.
    """
    sides = row_sides(x)
    if mask is not None and mask.shape == x.shape[:-1]:
        sides = tuple(side.masked_fill_(mask == 0, 0) for side in sides)
    return sides[0].amax(), sides[1].amax()


def decay_at(step: int, decay: float, debias: bool) -> float:
    """Return the weight that the old threshold keeps at observation `step` (0 for the first one).

    With `debias` it is min(decay, (1 + n) / (10 + n)): with the paper's constant 0.9999, training for a few
    hundred steps would keep the first batch's range almost unchanged.
    """
    if step == 0:
        return 0.0
    return min(decay, (1 + step) / (10 + step)) if debias else decay


def ema_update(threshold: Tensor, observed: Tensor, step: int, decay: float, debias: bool) -> Tensor:
    """Return the next threshold t - (1 - d) * (t - m); the first observation sets it."""
    keep = decay_at(step, decay, debias)
    return observed if keep == 0 else threshold - (1 - keep) * (threshold - observed)


def largest_of_processes(observed: Tensor) -> Tensor:
    """Return the maximum of a scalar over all processes of distributed training; outside of it, the scalar itself.

    Without this, each process would train with its own range, and only the first process's range would be saved. A
    NaN in one process becomes infinity in all of them, so that all refuse it: a plain maximum may lose a NaN.
    """
    if distributed.is_available() and distributed.is_initialized():
        observed = observed.nan_to_num(nan=math.inf, posinf=math.inf)
        distributed.all_reduce(observed, op=distributed.ReduceOp.MAX)
    return observed


def sum_of_processes(observed: Tensor) -> Tensor:
    """Return the sum over all processes of distributed training; outside of it, the tensor itself."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(observed, op=distributed.ReduceOp.SUM)
    return observed


class RangeCollector(Protocol):
    """Observes batches of one tensor, then chooses its threshold."""

    def add(self, rows: Tensor) -> None:
        """Observe (N, H) values."""
        ...

    def threshold(self) -> Tensor:
        """Return the float32 scalar threshold of everything observed."""
        ...


class MaxCollector:
    """Chooses the largest magnitude observed: nothing is clipped."""

    def __init__(self) -> None:
        self._max = torch.zeros(())

    def add(self, rows: Tensor) -> None:
        """Observe (N, H) values."""
        if rows.numel():
            self._max = torch.maximum(self._max, abs_max(rows))

    def threshold(self) -> Tensor:
        """Return the float32 scalar max|x|."""
        return self._max.clone()


class Histogram:
    """Counts of |x| in equal bins from 0; the width doubles whenever a value does not fit."""

    BINS = 4096

    def __init__(self) -> None:
        self.counts = torch.zeros(self.BINS, dtype=torch.float64)
        self.width = 0.0
        self.max = 0.0

    def add(self, rows: Tensor) -> None:
        """Observe (N, H) values.

        Raises:
            CalibrationError: if a value is infinite or NaN.
        """
        magnitudes = rows.detach().abs().to(torch.float32).reshape(-1)
        peak = float(magnitudes.max()) if magnitudes.numel() else 0.0
        if not peak < float("inf"):
            raise CalibrationError("an activation is infinite or NaN; ranges need finite values")
        if peak == 0.0:
            self.counts[0] += magnitudes.numel()
            return
        if self.width == 0.0:
            self.width = peak / self.BINS
        while self.width * self.BINS < peak:
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts = torch.cat([pairs, torch.zeros_like(pairs)])
            self.width *= 2
        # A value at the very end of the range belongs in the last bin, but rounding could put it one further.
        index = (magnitudes / self.width).to(torch.int64).clamp_(max=self.BINS - 1)
        self.counts += torch.bincount(index, minlength=self.BINS)
        self.max = max(self.max, peak)

    def edges(self) -> Tensor:
        """Return the upper edge of each bin, (BINS,) float64; edges beyond the largest value are set to it."""
        upper = torch.arange(1, self.BINS + 1, dtype=torch.float64) * self.width
        return upper.clamp(max=self.max)

    def squared_errors(self, steps: Tensor, limits: Tensor) -> Tensor:
        """Return the summed squared errors (N,) of quantizing with each step (N,), clamped at `limits` (N,) or ()."""
        centres = (torch.arange(self.BINS, dtype=torch.float64) + 0.5) * self.width
        columns = steps.unsqueeze(1)
        rounded = (centres / columns).round_().minimum((limits / steps).round().unsqueeze(1)) * columns  # (N, BINS)
        return (rounded - centres).square_() @ self.counts


class PercentileCollector:
    """Chooses the threshold that covers a share of all magnitudes; the rest is clipped."""

    def __init__(self, percentile: float) -> None:
        if not 0 < percentile <= 100:
            raise InputError(f"percentile must be above 0 and at most 100, not {percentile!r}")
        self.percentile = percentile
        self.histogram = Histogram()

    def add(self, rows: Tensor) -> None:
        """Observe (N, H) values."""
        self.histogram.add(rows)

    def threshold(self) -> Tensor:
        """Return the smallest bin edge that has at least the wanted share of values below it."""
        covered = self.histogram.counts.cumsum(0)
        index = int(torch.searchsorted(covered, covered[-1] * (self.percentile / 100)))
        return self.histogram.edges()[min(index, Histogram.BINS - 1)].to(torch.float32)


class MseCollector:
    """Chooses the threshold with the least squared difference between values and their quantized copies."""

    CANDIDATES = 128

    def __init__(self, bits: int = 8) -> None:
        self.largest = integer_limits(None, bits)[1]
        self.histogram = Histogram()

    def add(self, rows: Tensor) -> None:
        """Observe (N, H) values."""
        self.histogram.add(rows)

    def threshold(self) -> Tensor:
        """Return the best of 128 thresholds between max|x| / 128 and max|x|; in a tie, the largest."""
        top = self.histogram.max
        if top == 0.0:
            return torch.zeros(())
        candidates = top * torch.arange(self.CANDIDATES, 0, -1, dtype=torch.float64) / self.CANDIDATES
        errors = self.histogram.squared_errors(candidates / self.largest, candidates)
        return candidates[int(errors.argmin())].to(torch.float32)


def mse_sides(low: Histogram, high: Histogram, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Return both ends of the grid of 2^bits values with the least squared difference from values to quantized values.

    Both ends share one step, so they are chosen together: the best of 41 x 41 pairs. The candidates of a side go from
    its largest magnitude to 1/32 of that, in equal ratios.

    Args:
        low: histogram of max(-x, 0).
        high: histogram of max(x, 0).
        bits: bits of an integer.

    Returns:
        float32 scalars of at least 0, for `asymmetric_grid`.
    """
    shares = 2 ** -(torch.arange(41, dtype=torch.float64) / 8)
    lows, highs = low.max * shares, high.max * shares
    if low.max + high.max == 0.0:
        return torch.zeros(()), torch.zeros(())
    best, chosen = math.inf, (lows[0], highs[0])
    for end in lows[:1] if low.max == 0.0 else lows:
        steps = (end + highs) / (2**bits - 1)  # (41,)
        errors = low.squared_errors(steps, end) + high.squared_errors(steps, highs)
        place = int(errors.argmin())
        if float(errors[place]) < best:
            best, chosen = float(errors[place]), (end, highs[place])
    return chosen[0].to(torch.float32), chosen[1].to(torch.float32)


def create_collector(method: CalibrationMethod, percentile: float = 99.99, bits: int = 8) -> RangeCollector:
    """Return an empty collector of a range for integers of so many bits.

    Raises:
        InputError: if the method is unknown or the percentile is outside (0, 100].
    """
    if method == "max":
        return MaxCollector()
    if method == "percentile":
        return PercentileCollector(percentile)
    if method == "mse":
        return MseCollector(bits)
    raise InputError(f"calibration method must be one of max, percentile, mse; found {method!r}")
