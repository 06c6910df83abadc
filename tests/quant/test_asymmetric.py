"""Asymmetric inputs: the grid, its ranges, and the simulation against int64 arithmetic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from q8core.errors import SchemeError
from q8core.quant import Scheme, SiteScheme, preset
from q8core.quant.ops.arithmetic import asymmetric_grid, quantize
from q8core.quant.ops.passes import to_grid
from q8core.quant.qat.context import ForwardContext
from q8core.quant.qat.convert import convert
from q8core.quant.qat.layers import QATLinear
from q8core.quant.qat.prepare import calibrate, prepare
from q8core.quant.quantizer import PER_CHANNEL, Grid, Quantizer
from q8core.quant.rules.ranges import Histogram, mse_sides, side_maxima
from q8core.quant.schemes.scheme import LINEAR_SLOTS
from tests.quant.conftest import hidden_states, make_batch, make_classifier, plan_for, prepared, site_plan
from tests.quant.integer_reference import IntegerBert

STATIC_ASYMMETRIC = Quantizer(grid="asymmetric", rule="ema")
ASYMMETRIC = SiteScheme(weight=PER_CHANNEL, input=STATIC_ASYMMETRIC)


def with_grid(base: Scheme, name: str, grid: Grid, slots: tuple[str, ...] = LINEAR_SLOTS) -> Scheme:
    changed = dict(base.slots)
    for slot in slots:
        read = changed[slot].input
        assert read is not None
        changed[slot] = replace(changed[slot], input=replace(read, grid=grid))
    return replace(base, name=name, slots=changed)


def symmetric(name: str = "q8bert") -> Scheme:
    """A preset with symmetric inputs."""
    return with_grid(preset(name), "symmetric", "symmetric")


def asymmetric(name: str = "q8bert", *slots: str) -> Scheme:
    """A preset with asymmetric inputs, everywhere or in these slots."""
    return with_grid(symmetric(name), "asymmetric", "asymmetric", slots or LINEAR_SLOTS)


def make_linear(columns: int, out: int, **scheme: Any) -> QATLinear:
    torch.manual_seed(0)
    rules, context = replace(preset("q8bert"), **scheme), ForwardContext(ignore_padding=True)
    linear = nn.Linear(columns, out)
    return QATLinear(linear, plan=site_plan("l", linear, ASYMMETRIC), scheme=rules, context=context).train()


@given(low=st.floats(0, 100, width=32), high=st.floats(0, 100, width=32))
def test_a_grid_covers_its_range_with_256_steps(low: float, high: float) -> None:
    scale, zero_point = asymmetric_grid(torch.tensor(low), torch.tensor(high))
    assert zero_point % 2 == 0
    assert 0 <= zero_point <= 254
    x = torch.linspace(-low, high, 1000)
    q = quantize(x, scale, zero_point)
    assert float(q.min()) >= -zero_point
    assert float(q.max()) <= 255 - zero_point
    assert float((q * scale - x).abs().max()) <= 1.51 * float(scale)  # the even zero point may cost one at an end
    if low + high > 1e-30:
        assert float(scale) == pytest.approx((low + high) / 255, rel=1e-6)
    assert quantize(torch.zeros(1), scale, zero_point).item() == 0


@given(zero_point=st.integers(0, 127).map(lambda half: 2 * half), seed=st.integers(0, 99))
def test_quantizing_is_that_of_float64_also_in_bfloat16(zero_point: int, seed: int) -> None:
    x = 200 * torch.randn(64, generator=torch.Generator().manual_seed(seed))
    scale = torch.tensor([0.5])  # a power of two: no product is rounded
    expected = np.clip(np.rint(x.double().numpy() / 0.5) + zero_point, 0, 255) - zero_point
    assert np.array_equal(quantize(x, scale, zero_point).numpy(), expected)
    assert np.array_equal(to_grid(x, scale, torch.bfloat16, zero_point).float().numpy(), expected)


def test_the_sides_of_a_range_leave_padding_out() -> None:
    x = torch.tensor([[[1.0, -2.0], [5.0, -9.0]], [[0.5, 3.0], [-7.0, 8.0]]])
    assert [float(side) for side in side_maxima(x, torch.tensor([[1, 0], [1, 0]]))] == [2.0, 3.0]
    assert [float(side) for side in side_maxima(x)] == [9.0, 8.0]
    assert [float(side) for side in side_maxima(x.abs())] == [0.0, 9.0]


def test_both_sides_are_averaged() -> None:
    layer = make_linear(2, 2, ema_decay=0.5, ema_debias=False)
    for low, high in ((1.0, 4.0), (3.0, 8.0)):
        layer(torch.tensor([[-low, high]]))
    found = {name: float(value) for name, value in layer.named_buffers()}
    assert found == {"input_low_threshold": 2.0, "input_high_threshold": 6.0, "observed_steps": 2}


def test_one_linear_equals_int64_and_its_gradients_those_of_the_float_layer() -> None:
    layer = make_linear(48, 24)
    x = torch.nn.functional.gelu(2 * torch.randn(5, 7, 48, generator=torch.Generator().manual_seed(1))).requires_grad_()
    y = layer(x)
    scales = layer.scales()
    zero_point = layer.range_grid("input")[1]
    assert scales.input is not None
    assert zero_point is not None
    assert 0 < zero_point < 40  # GELU's outputs lie almost all above 0
    w_q = quantize(layer.weight.detach(), scales.weight.reshape(-1, 1)).long()
    ticks = torch.round(x.detach().double() * scales.input.reciprocal()) + zero_point
    x_q = ticks.clamp(0, 255).long() - zero_point
    r = scales.input * scales.weight
    expected = (x_q @ w_q.T).float() * r + layer.bias_i32(scales.input, scales.weight).float() * r
    assert torch.equal(y.detach(), expected)
    direction = torch.randn(5, 7, 24, generator=torch.Generator().manual_seed(2))
    y.backward(direction)
    w_hat, x_hat = w_q * scales.weight.reshape(-1, 1), x_q * scales.input
    assert x.grad is not None
    assert layer.weight.grad is not None
    torch.testing.assert_close(x.grad, direction @ w_hat)
    torch.testing.assert_close(layer.weight.grad, torch.einsum("abo,abi->oi", direction, x_hat), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ["q8bert", "q8bert-attention", "q8bert-paper"])
def test_whole_model_equals_an_integer_bert(name: str) -> None:
    network = make_classifier()
    plan = plan_for(network, asymmetric(name))
    model = prepare(network, plan).train()
    for seed in range(3):
        model(**make_batch(seed))
    tensors = convert(model.eval())
    points = {path: int(value) for path, value in tensors.items() if path.endswith("input_zero_point")}
    assert len(points) == 2 * 6 + 2
    assert len(set(points.values())) > 4
    integer = IntegerBert(plan, tensors)
    batch = make_batch(11)
    with torch.no_grad():
        got = model(**batch).numpy()
    expected = integer.logits(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"])
    assert np.median(np.abs(got - expected)) < 1e-5 * np.abs(expected).max()
    assert np.abs(got - expected).max() < 3e-2 * np.abs(expected).max()


def error_of(scheme: Scheme) -> float:
    batches = [make_batch(seed) for seed in range(4)]
    network = make_classifier()
    last = network.hidden_state_paths[-1]
    with torch.no_grad():
        expected = torch.cat([hidden_states(network, last, batch) for batch in batches])
    model = prepared(network, scheme)
    calibrate(model, batches)
    model.eval()
    with torch.no_grad():
        found = torch.cat([hidden_states(model, last, batch) for batch in batches])
    seen = torch.cat([batch["attention_mask"] for batch in batches]) == 1
    return float((found - expected)[seen].square().mean())


def test_ffn_out_reads_gelu_and_gains_from_asymmetry() -> None:
    """Its inputs are almost all positive: half of a symmetric grid is wasted on them."""
    assert error_of(asymmetric("static", "ffn_out")) < 0.95 * error_of(symmetric("static"))


def test_calibration_finds_both_sides() -> None:
    batches = [make_batch(seed) for seed in range(3)]
    model = make_classifier()
    inputs: list[Tensor] = []
    hook = model.layers[1].ffn_out.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    for batch in batches:
        model(**batch)
    hook.remove()
    rows = torch.cat([x.detach()[b["attention_mask"] == 1] for x, b in zip(inputs, batches, strict=True)])
    calibrate(prepared(model, asymmetric("static").smoothed(0)), batches)
    layer = model.get_submodule("layers.1.ffn_out")
    assert float(layer.get_buffer("input_low_threshold")) == pytest.approx(float(-rows.min()), rel=1e-6)
    assert float(layer.get_buffer("input_high_threshold")) == pytest.approx(float(rows.max()), rel=1e-6)
    calibrate(model, batches, method="percentile", percentile=90.0)
    assert float(layer.get_buffer("input_high_threshold")) < 0.8 * float(rows.max())


def test_least_squared_error_is_found_for_both_sides_together() -> None:
    """GELU's outputs, one of which is far out: against the error of the quantized values themselves."""
    x = torch.nn.functional.gelu(torch.randn(2000, 64, generator=torch.Generator().manual_seed(3)))
    x[0, 0] = 8.0
    low, high = Histogram(), Histogram()
    for rows in (x[:1], x[1:]):
        low.add((-rows).clamp(min=0))
        high.add(rows.clamp(min=0))

    def error(low: float, high: float) -> float:
        scale, zero_point = asymmetric_grid(torch.tensor(low), torch.tensor(high))
        return float((quantize(x, scale, zero_point) * scale - x).double().square().sum())

    found = [float(side) for side in mse_sides(low, high)]
    shares = [2 ** (-step / 8) for step in range(0, 41, 2)]
    best = min(error(low.max * down, high.max * up) for down in shares for up in shares)
    assert error(*found) <= 1.02 * best  # the histogram's bins and the even zero point make the difference
    assert found[1] < 8
    assert found[0] > 0.1  # what the long side loses is not taken from the short one
    nothing = Histogram()
    nothing.add(torch.zeros(3, 2))
    assert [float(side) for side in mse_sides(nothing, nothing)] == [0.0, 0.0]
    assert float(mse_sides(nothing, high)[0]) == 0.0


def test_calibration_by_error_differs_from_one_side_alone() -> None:
    batches = [make_batch(seed) for seed in range(40)]
    model = prepared(make_classifier(), asymmetric("static"))
    layer = model.get_submodule("layers.1.ffn_out")
    ends = {}
    for method in ("max", "mse"):
        calibrate(model, batches, method=method)
        ends[method] = [float(layer.get_buffer(f"input_{side}_threshold")) for side in ("low", "high")]
    assert 0 < ends["mse"][0] <= ends["max"][0]
    assert 0 < ends["mse"][1] <= ends["max"][1]
    assert ends["mse"] != ends["max"]


def test_only_equal_grids_share_their_input() -> None:
    model = prepared(make_classifier(), asymmetric("q8bert", "key", "value")).train()
    model(**make_batch())
    tensors = convert(model.eval())
    path = "layers.0"
    assert f"{path}.query.input_zero_point" not in tensors
    assert torch.equal(tensors[f"{path}.key.input_zero_point"], tensors[f"{path}.value.input_zero_point"])
    names = [name for name, _ in model.named_buffers() if name.endswith("input_low_threshold")]
    assert names == [f"{path.replace('0', layer)}.key.input_low_threshold" for layer in "01"]


def test_only_static_inputs_can_be_asymmetric() -> None:
    base = preset("dynamic")
    token = Quantizer(granularity="token", grid="asymmetric")
    for slot in LINEAR_SLOTS:
        with pytest.raises(SchemeError, match=rf"slot {slot}: input.grid of one scale a token is 'asymmetric'"):
            replace(base, slots={**base.slots, slot: SiteScheme(weight=PER_CHANNEL, input=token)})
    output = SiteScheme(weight=PER_CHANNEL, input=STATIC_ASYMMETRIC, output=STATIC_ASYMMETRIC)
    with pytest.raises(SchemeError, match=r"slot query: output.* is 'asymmetric'; allowed: symmetric"):
        replace(base, slots={**base.slots, "query": output})
