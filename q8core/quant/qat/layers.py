"""The fake-quantized version of `nn.Linear`.

It keeps the parameter names of the layer that it replaces, so a state dict keeps the names of sites. Ranges are
buffers (`input_threshold`, or of an asymmetric input `input_low_threshold` and `input_high_threshold`;
`output_threshold`; `observed_steps`; with smoothing `input_smoothing`), so training resumes exactly. Learned steps are
parameters (`weight_steps.log_step`, `input_log_step`).
"""

from __future__ import annotations

from math import isfinite
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from q8core.errors import CalibrationError
from q8core.quant.ops.arithmetic import (
    asymmetric_grid,
    dequantize_bias,
    input_steps,
    integer_limits,
    quantize_bias,
    row_scales,
    scale_from_threshold,
)
from q8core.quant.ops.passes import to_grid
from q8core.quant.plan import SitePlan
from q8core.quant.qat.context import ForwardContext, compute_dtype
from q8core.quant.qat.fake_quant import fake_quantize, gated, quantized_linear
from q8core.quant.qat.weight_grid import WeightGrid, WeightSteps, weight_integers
from q8core.quant.quantizer import Quantizer
from q8core.quant.rules.ranges import (
    RangeCollector,
    abs_max,
    ema_update,
    largest_of_processes,
    rows_of,
    side_maxima,
    sum_of_processes,
)
from q8core.quant.schemes import Scheme

_PULL = 0.01
"""Of the way to the step with the least squared error for a batch, what a learned step of an input goes."""

RangeName = Literal["input", "input_low", "input_high", "output"]


class LinearScales(NamedTuple):
    """The frozen scales of a linear layer: input (1,), weight (scales,), output (1,); None if not static."""

    input: Tensor | None
    weight: Tensor
    output: Tensor | None


class QATLinear(nn.Linear):
    """A linear layer that computes on integers: x (..., in) -> (..., out).

    In training mode it observes its ranges, then quantizes; in evaluation the ranges are frozen. Weights are
    quantized again in each forward pass from the float master `weight` (out, in), never cached.

    Raises:
        CalibrationError: in evaluation, if no batch was ever observed; in training, if an activation is infinite
            or NaN.
    """

    observed_steps: Tensor

    def __init__(
        self,
        linear: nn.Linear,
        *,
        plan: SitePlan,
        scheme: Scheme,
        context: ForwardContext,
        shares_input_of: QATLinear | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        assert plan.weight is not None
        self.plan, self.path, self.context = plan, plan.path, context
        self.weight_quantizer: Quantizer = plan.weight
        self.weight_steps = WeightSteps(self.weight, plan.weight, plan.path, follows=True)
        self.ema_decay, self.ema_debias = scheme.ema_decay, scheme.ema_debias
        self.collectors: dict[RangeName, RangeCollector] | None = None
        # In a tuple, so that the layer that owns the shared range is not registered as a child.
        self._input_owner = () if shares_input_of is None else (shares_input_of,)
        self.shared = False
        if shares_input_of is not None:
            shares_input_of.shared = True
        self.register_buffer("observed_steps", torch.zeros((), dtype=torch.int64))
        for name in self.own_ranges:
            self.register_buffer(f"{name}_threshold", torch.zeros(()))
        self.input_log_step: nn.Parameter | None = None
        if plan.input is not None and plan.input.learns and not self._input_owner:
            self.input_log_step = nn.Parameter(torch.zeros(()))
        self.columns: Tensor | None = None
        if plan.smooths and not self._input_owner:
            self.register_buffer("input_smoothing", torch.ones(self.in_features))
        self.train(linear.training)

    @property
    def input_owner(self) -> QATLinear:
        """The layer whose buffers hold the input range: itself, or the query layer for shared Q/K/V inputs."""
        return self._input_owner[0] if self._input_owner else self

    @property
    def smoothing(self) -> Tensor | None:
        """The factors (in,) that divide the input's columns and multiply the weight's; None without smoothing."""
        return self.input_owner.get_buffer("input_smoothing") if self.plan.smooths else None

    def deployed_weight(self) -> Tensor:
        """Return the weight (out, in) that is quantized, detached; smoothing factors are applied to its columns."""
        weight = self.weight.detach()
        return weight if self.smoothing is None else weight * self.smoothing

    @property
    def asymmetric(self) -> bool:
        """Whether the input has a zero point."""
        return self.plan.input is not None and self.plan.input.grid == "asymmetric"

    @property
    def own_ranges(self) -> tuple[RangeName, ...]:
        """The ranges whose buffers this layer holds."""
        ranges: tuple[RangeName, ...] = ()
        if self.plan.kind == "static" and not self._input_owner:
            ranges = ("input_low", "input_high") if self.asymmetric else ("input",)
        return ranges if self.plan.output is None else (*ranges, "output")

    @property
    def calibrating(self) -> bool:
        """Whether it is being calibrated: it computes in float and only observes its values."""
        return self.collectors is not None or self.columns is not None

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output (..., out) for `input` (..., in)."""
        if self.columns is not None:
            rows = rows_of(input.detach(), self.context.mask)
            self.columns = torch.maximum(self.columns, rows.abs().to(torch.float32).amax(dim=0))
            return F.linear(input, self.weight, self.bias)
        if self.collectors is not None:
            return self._collect(input, self.collectors)
        step = int(self.observed_steps)
        if self.training:
            if self.plan.kind == "static" and not self._input_owner:
                self._observe("input", input, step)
            self.observed_steps += 1  # only now: a refused batch sets no range
        if self.training and step < self.plan.scheme.start_step:
            y = F.linear(input, self.weight, self.bias)
            if self.plan.output is not None:
                self._observe("output", y, step)
            return y
        y = self._quantized(input)
        if self.plan.output is not None:
            if self.training:
                self._observe("output", y, step)
            y = fake_quantize(y, self.range_scale("output"))
        return y

    def range_scale(self, name: Literal["input", "output"]) -> Tensor:
        """Return the (1,) scale of the input or output range.

        Raises:
            CalibrationError: if the range was never observed.
        """
        return self.range_grid(name)[0]

    def range_grid(self, name: Literal["input", "output"]) -> tuple[Tensor, int | None]:
        """Return the (1,) scale of the input or output range, and the zero point of an asymmetric input.

        Raises:
            CalibrationError: if the range was never observed.
        """
        owner = self.input_owner if name == "input" else self
        if int(owner.observed_steps) == 0:
            raise CalibrationError(
                f"{owner.path}: the {name} range was never observed; train or calibrate before evaluating"
            )
        if name == "output":
            return scale_from_threshold(self.get_buffer("output_threshold").reshape(1)), None
        scale, zero_point = owner._observed_grid()
        return scale if owner.input_log_step is None else owner.input_log_step.detach().exp().reshape(1), zero_point

    def start_steps(self) -> None:
        """Start a learned step of the input from its range, which also fixes the zero point."""
        if self.input_log_step is not None:
            with torch.no_grad():
                self.input_log_step.copy_(self._observed_grid()[0].squeeze().log())

    def _observed_grid(self) -> tuple[Tensor, int | None]:
        """Return the (1,) scale and the zero point of the observed range of the input, whose buffers it holds."""
        read = self.plan.input
        assert read is not None
        if self.asymmetric:
            low, high = (self.get_buffer(f"input_{side}_threshold") for side in ("low", "high"))
            return asymmetric_grid(low, high, read.bits)
        return scale_from_threshold(self.get_buffer("input_threshold").reshape(1), read.largest), None

    def scales(self) -> LinearScales:
        """Return the layer's scales as they would be deployed now.

        Raises:
            CalibrationError: if a range was never observed or the weight is not finite.
        """
        scale_w = self.weight_grid().scale
        scale_x = self.range_scale("input") if self.plan.kind == "static" else None
        scale_y = self.range_scale("output") if self.plan.output is not None else None
        return LinearScales(scale_x, scale_w, scale_y)

    def weight_grid(self) -> WeightGrid:
        """Return the weight's grid as it would be deployed now.

        Raises:
            CalibrationError: if the weight is not finite.
        """
        return self.weight_steps.grid(self.deployed_weight())

    def bias_i32(self, scale_x: Tensor, scale_w: Tensor) -> Tensor:
        """Return the bias (out,) as int32 steps of the accumulator; `scale_w` has one value, or one for each row.

        Raises:
            CalibrationError: if it is infinite or NaN, or the scales leave no usable step.
        """
        try:
            return quantize_bias(self.bias, scale_x, scale_w)
        except CalibrationError as error:
            raise CalibrationError(f"{self.path}: {error}") from None

    def extra_repr(self) -> str:
        """Describe shapes and scheme, so that printing a model documents its quantization."""
        weight, read = self.weight_quantizer, self.plan.input
        parts = [f"in_features={self.in_features}, out_features={self.out_features}"]
        parts.append(f"weight: {weight.bits} bits per {weight.granularity}")
        parts += [] if read is None else [f"input: {read.bits} bits, {read.grid}, {self.plan.kind}"]
        parts += [] if self.plan.output is None else ["quantized output"]
        parts += [f"input range of {self.input_owner.path}"] if self._input_owner else []
        return ", ".join(parts)

    def _quantized(self, x: Tensor) -> Tensor:
        """Simulate the integer layer, without requantization."""
        dtype = compute_dtype()
        with torch.no_grad():
            weight = self.deployed_weight()
            # observed_steps has counted this step already
            step = int(self.observed_steps) - 1 if self.training else None
            grid = self.weight_steps.grid(weight, step).rows(self.out_features)
            scale_w, w_q = grid.scale, weight_integers(weight, self.weight_quantizer, grid, dtype)
            x_q, scale_x = self._quantized_input(x, dtype)
            if self.plan.kind == "static":
                bias_hat = dequantize_bias(self.bias_i32(scale_x, scale_w), scale_x, scale_w)
            else:
                bias_hat = self.bias.detach()
        return quantized_linear(
            self._gated_input(x), self.weight_steps.gated(self.weight, grid, self.smoothing), self.bias,
            x_q=x_q, w_q=w_q, scale_x=scale_x, scale_w=scale_w, bias_hat=bias_hat, smoothing=self.smoothing,
        )  # fmt: skip

    def _quantized_input(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return (x_q, scale_x); layers that share an input range also share the quantized tensor."""
        if self.plan.kind == "dynamic":
            scale_x = row_scales(x)
            return to_grid(x, scale_x, dtype), scale_x
        owner = self.input_owner
        if owner is not self:
            recalled = self.context.recall(owner, x)
            if recalled is not None:
                return recalled
        assert self.plan.input is not None
        scale_x, zero_point = self.range_grid("input")
        x_q = to_grid(x, input_steps(scale_x, self.smoothing), dtype, zero_point, self.plan.input.bits)
        if self.shared:
            self.context.remember(self, x, x_q, scale_x)
        return x_q, scale_x

    def _gated_input(self, x: Tensor) -> Tensor:
        """Return the input (..., in), whose gradient goes on as its quantizer says, to a learned step too."""
        read, log_step = self.plan.input, self.input_owner.input_log_step
        assert read is not None
        if log_step is None and read.gradient == "straight_through":
            return x
        scale, zero_point = self.range_grid("input")
        low, high = (torch.tensor(float(limit), device=x.device) for limit in integer_limits(zero_point, read.bits))
        steps, masked = input_steps(scale, self.smoothing), read.gradient == "masked"
        return gated(x, log_step, steps=steps, limits=(low, high), masked=masked)

    def _smoothed(self, x: Tensor) -> Tensor:
        """Return the input (..., in) smoothed, so that one scale fits all its columns."""
        return x if self.smoothing is None else x / self.smoothing

    def _observe(self, name: Literal["input", "output"], x: Tensor, step: int) -> None:
        """Move a range towards this batch's max|x|, or the maxima of both sides, before the batch is quantized."""
        if name == "input" and self.plan.input is not None and self.plan.input.rule != "ema":
            if step == 0:
                raise CalibrationError(
                    f"{self.path}: training of an input of rule {self.plan.input.rule!r} starts from a range that "
                    "calibration found, and there is none"
                )
            if self.plan.input.rule != "learned":
                self._follow(x.detach(), step, self.plan.input.bits)
            return
        x = self._smoothed(x.detach()) if name == "input" else x
        names = [each for each in self.own_ranges if each.startswith(name)]
        mask = self.context.mask
        found = [
            largest_of_processes(each) for each in (side_maxima(x, mask) if len(names) == 2 else (abs_max(x, mask),))
        ]
        if not all(isfinite(float(observed)) for observed in found):
            raise CalibrationError(f"{self.path}: the {name} of this layer is infinite or NaN at step {step}")
        for each, observed in zip(names, found, strict=True):
            threshold = self.get_buffer(f"{each}_threshold")
            threshold.copy_(ema_update(threshold, observed, step, self.ema_decay, self.ema_debias))

    def _follow(self, x: Tensor, step: int, bits: int) -> None:
        """Move the input's range, or learned step, towards the least squared error for the integers of this batch."""
        scale, zero_point = self.range_grid("input")
        rows = rows_of(x, self.context.mask).to(torch.float32)
        q = to_grid(rows, scale, torch.float32, zero_point, bits)
        products, squares = sum_of_processes(torch.stack([(rows * q).sum(), (q * q).sum()]))
        ratio = products / (squares * scale) if float(squares) != 0 else torch.ones(1)
        if not isfinite(float(ratio)):
            raise CalibrationError(f"{self.path}: the input of this layer is infinite or NaN at step {step}")
        if self.input_log_step is not None:
            with torch.no_grad():
                self.input_log_step.add_(ratio.squeeze().log(), alpha=_PULL)
            return
        for name in self.own_ranges:
            if name != "output":
                threshold = self.get_buffer(f"{name}_threshold")
                moved = ema_update(threshold, threshold * ratio.squeeze(), step, self.ema_decay, self.ema_debias)
                threshold.copy_(moved)

    def _collect(self, x: Tensor, collectors: dict[RangeName, RangeCollector]) -> Tensor:
        """Calibration: hand input and output to the collectors and compute in float."""
        y = F.linear(x, self.weight, self.bias)
        for name, collector in collectors.items():
            rows = rows_of((y if name == "output" else self._smoothed(x)).detach(), self.context.mask)
            if name in ("input_low", "input_high"):
                rows = (rows if name == "input_high" else -rows).clamp(min=0)
            try:
                collector.add(rows)
            except CalibrationError as error:
                raise CalibrationError(f"{self.path}, {name}: {error}") from None
        return y
