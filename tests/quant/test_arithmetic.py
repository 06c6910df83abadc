from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from q8core.errors import CalibrationError
from q8core.quant.ops.arithmetic import (
    dequantize,
    dequantize_bias,
    per_row,
    quantize,
    quantize_bias,
    quantize_i8,
    rescale_factor,
    row_scales,
    scale_from_threshold,
)

thresholds = st.floats(min_value=2.0**-100, max_value=2.0**100, width=32)
values = st.lists(st.floats(-1.0, 1.0, width=32), min_size=1, max_size=50)


@given(thresholds, values)
def test_quantize_matches_float64_oracle_up_to_ties(threshold: float, fractions: list[float]) -> None:
    x = torch.tensor(fractions) * threshold
    scale = scale_from_threshold(torch.tensor(threshold))
    q = quantize(x, scale)
    exact = x.double().numpy() / np.float64(scale.item())
    # Two float32 roundings (reciprocal, product) move x/scale by less than 127 * 2**-23.
    assert np.abs(q.numpy() - exact).max() <= 0.5 + 127 * 2.0**-22
    assert torch.equal(q, q.round())
    assert q.abs().max() <= 127


@given(thresholds, values)
def test_quantize_is_odd(threshold: float, fractions: list[float]) -> None:
    x = torch.tensor(fractions) * threshold * 2
    scale = scale_from_threshold(torch.tensor(threshold))
    assert torch.equal(quantize(-x, scale), -quantize(x, scale))


@given(thresholds)
def test_every_integer_survives_a_round_trip(threshold: float) -> None:
    scale = scale_from_threshold(torch.tensor(threshold))
    q = torch.arange(-127, 128).to(torch.int8)
    assert torch.equal(quantize_i8(dequantize(q, scale), scale), q)


@given(st.floats(min_value=0, max_value=float(np.finfo(np.float32).max), width=32))
def test_every_finite_threshold_gives_a_usable_scale(threshold: float) -> None:
    scale = scale_from_threshold(torch.tensor(threshold))
    assert 0 < scale.item() < float("inf")
    assert bool(torch.isfinite(scale.reciprocal()))
    q = quantize(torch.tensor([threshold, -threshold]), scale)
    assert q.tolist() in ([127.0, -127.0], [0.0, 0.0])


def test_ties_round_to_even() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 126.5])
    assert quantize(x, torch.tensor(1.0)).tolist() == [0, 2, 2, 0, -2, 126]


def test_never_minus_128() -> None:
    assert quantize_i8(torch.tensor([-1e30, 1e30, -127.9]), torch.tensor(1.0)).tolist() == [-127, 127, -127]


def test_quantizing_multiplies_by_the_float32_reciprocal() -> None:
    """Multiplying and dividing differ in the last place and flip ties: the definition is the product."""
    scales = np.linspace(0.01, 0.1, 97, dtype=np.float32).reshape(-1, 1)
    ties = (np.arange(-126, 126, dtype=np.float32) + np.float32(0.5)) * scales
    product = np.rint(ties * (np.float32(1) / scales))
    assert (product != np.rint(ties / scales)).any()  # the difference is a real one
    assert np.array_equal(quantize(torch.from_numpy(ties), torch.from_numpy(scales)).numpy(), product)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_quantize_computes_in_float32(dtype: torch.dtype) -> None:
    x = torch.linspace(-3, 3, 1001).to(dtype)
    scale = scale_from_threshold(torch.tensor(3.0))
    q = quantize(x, scale)
    assert q.dtype == torch.float32
    assert torch.equal(q, quantize(x.float(), scale))


def test_quantize_leaves_its_input_alone() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.tensor([0.3, -5.0], dtype=dtype)
        copy = x.clone()
        quantize(x, torch.tensor(0.5))
        assert torch.equal(x, copy)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_unusable_thresholds_are_refused(bad: float) -> None:
    with pytest.raises(CalibrationError, match="finite and not negative; found"):
        scale_from_threshold(torch.tensor([1.0, bad]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_unusable_values_are_refused(bad: float) -> None:
    with pytest.raises(CalibrationError, match="infinite or NaN"):
        quantize_i8(torch.tensor([1.0, bad]), torch.tensor(1.0))
    with pytest.raises(CalibrationError, match="infinite or NaN"):
        quantize_bias(torch.tensor([1.0, bad]), torch.tensor([1.0]), torch.tensor([1.0]))


def test_saturated_bias_keeps_its_sign() -> None:
    """The largest bias must not wrap around: float32(2**31 - 1) is 2**31, which overflows int32."""
    bias = quantize_bias(torch.tensor([1e30, -1e30]), torch.tensor([1e-3]), torch.tensor([1e-3]))
    assert bias.tolist() == [2**31 - 1, -(2**31) + 1]


def test_bias_is_rounded_in_float64() -> None:
    # 2**24 + 1 steps has no float32: a float32 division would round it to an even number of steps.
    bias = quantize_bias(torch.tensor([3.0 * 2**24]), torch.tensor([1.5]), torch.tensor([2.0 / 3.0]))
    r = float(rescale_factor(torch.tensor([1.5]), torch.tensor([2.0 / 3.0])))
    assert bias.item() == round(3.0 * 2**24 / r)


@given(st.floats(-100, 100, width=32), st.floats(2.0**-20, 1.0, width=32), st.floats(2.0**-20, 1.0, width=32))
def test_bias_error_is_at_most_half_a_step(value: float, scale_x: float, scale_w: float) -> None:
    sx, sw = torch.tensor([scale_x]), torch.tensor([scale_w])
    r = rescale_factor(sx, sw).double()
    bias_i32 = quantize_bias(torch.tensor([value]), sx, sw)
    if abs(bias_i32.item()) < 2**31 - 1:
        assert abs(bias_i32.double() * r - value).item() <= r.item() * (0.5 + 1e-6)


def test_product_of_scales_must_not_vanish() -> None:
    with pytest.raises(CalibrationError, match="positive float32; found 0"):
        quantize_bias(torch.ones(1), torch.tensor([1e-30]), torch.tensor([1e-30]))


def test_shapes_of_factors() -> None:
    assert rescale_factor(torch.tensor(2.0), torch.tensor(3.0)).tolist() == [6.0]
    assert rescale_factor(torch.tensor([2.0]), torch.tensor([3.0, 4.0])).tolist() == [6.0, 8.0]
    assert per_row(torch.tensor(2.0)).shape == per_row(torch.tensor([2.0])).shape == (1, 1)
    assert per_row(torch.ones(5)).shape == (5, 1)
    assert dequantize_bias(torch.tensor([3, 5]), torch.tensor([0.5]), torch.tensor([2.0])).tolist() == [3.0, 5.0]


def test_row_scales_depend_on_their_row_only() -> None:
    x = torch.randn(4, 7, 16, generator=torch.Generator().manual_seed(0))
    scales = row_scales(x)
    assert scales.shape == (4, 7, 1)
    assert torch.equal(row_scales(x[2:3, 3:5]), scales[2:3, 3:5])
    assert quantize(x, scales).abs().amax(-1).eq(127).all()
