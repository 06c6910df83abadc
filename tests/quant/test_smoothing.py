"""Inputs whose columns have scales of their own: what they change, and what stays as it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from q8core.errors import CalibrationError, SchemeError
from q8core.quant import Quantizer, Scheme, preset
from q8core.quant.dequantized import DequantizedTensors
from q8core.quant.qat.convert import arrays, convert
from q8core.quant.qat.prepare import calibrate, quantized_layers
from q8core.quant.qat.smoothing import smoothing_factors
from tests.quant.conftest import make_batch, make_classifier, plan_for, prepared


def smoothed(strength: float) -> Scheme:
    return replace(preset("static").smoothed(strength), name="own")


def test_factors_are_those_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w, v = torch.rand(7, generator=generator), *(torch.randn(5, 7, generator=generator) for _ in range(2))
    columns = torch.cat([w, v]).abs().amax(0).numpy().astype(np.float64)
    expected = x.numpy().astype(np.float64) ** 0.8 / columns**0.2
    found = smoothing_factors(x, [w, v], 0.8).numpy()
    np.testing.assert_allclose(found / found[0], expected / expected[0], rtol=1e-5)
    assert np.log(found).mean() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dead", ["input", "weight", "both"])
def test_columns_of_zeros_get_usable_factors(dead: str) -> None:
    x, w = torch.rand(6) + 0.5, torch.randn(4, 6)
    if dead in ("input", "both"):
        x[2] = 0
    if dead in ("weight", "both"):
        w[:, 3] = 0
    for found in (smoothing_factors(x, [w], 0.85), smoothing_factors(torch.zeros(6), [torch.zeros(4, 6)], 0.85)):
        assert bool((torch.isfinite(found) & (found > 0)).all())


def test_a_column_far_larger_than_the_rest_costs_the_others_no_steps() -> None:
    """What trained models have: a layer norm with one large output, whose weights are small."""
    torch.manual_seed(0)
    x = torch.randn(64, 32)
    x[:, 5] *= 60

    def error(strength: float) -> float:
        model = prepared(make_classifier(), smoothed(strength))
        layer = quantized_layers(model)[0]["layers.0.ffn_in"]
        with torch.no_grad():
            layer.weight[:, 5] /= 60
        calibrate(model, [make_batch(0)])  # of everything else
        columns, weight = x.abs().amax(0), layer.weight
        smoothing = smoothing_factors(columns, [weight], strength) if strength else torch.ones(32)
        if strength:
            layer.get_buffer("input_smoothing").copy_(smoothing)
        layer.get_buffer("input_low_threshold").copy_((-x / smoothing).max())
        layer.get_buffer("input_high_threshold").copy_((x / smoothing).max())
        with torch.no_grad():
            return float((layer(x) - torch.nn.functional.linear(x, weight, layer.bias)).square().mean().sqrt())

    assert error(0.85) < 0.2 * error(0.0)


def test_layers_that_share_an_input_share_its_factors() -> None:
    model = prepared(make_classifier(), smoothed(0.85))
    calibrate(model, [make_batch(0)])
    tensors = convert(model)
    first, *others = (tensors[f"layers.0.{slot}.input_smoothing"] for slot in ("query", "key", "value"))
    assert all(torch.equal(first, other) for other in others)
    assert float(first.std()) > 0.01
    plan = plan_for(make_classifier(), smoothed(0.85))
    assert plan.tensors["layers.0.query.input_smoothing"].shape == first.shape


def test_float_tensors_of_a_smoothed_checkpoint_are_near_the_weights() -> None:
    network = make_classifier()
    weight = network.get_parameter("layers.1.ffn_out.weight").detach().clone()
    model = prepared(network, smoothed(0.85))
    calibrate(model, [make_batch(0)])
    floats = DequantizedTensors(plan_for(make_classifier(), smoothed(0.85)), arrays(convert(model)))
    layer = quantized_layers(model)[0]["layers.1.ffn_out"]
    step = layer.scales().weight.reshape(-1, 1) / layer.smoothing
    assert bool(((torch.from_numpy(floats["layers.1.ffn_out.weight"]) - weight).abs() <= 0.5001 * step).all())


def test_gradients_are_those_of_the_float_layer_with_dequantized_operands() -> None:
    model = prepared(make_classifier(dropout=0.0), smoothed(0.85))
    calibrate(model, [make_batch(0)])
    layer = quantized_layers(model)[0]["layers.0.ffn_in"]
    smoothing = layer.smoothing
    assert smoothing is not None
    x = torch.randn(3, 5, layer.in_features, requires_grad=True)
    layer.eval()(x).square().sum().backward()
    scales, (scale_x, zero_point) = layer.scales(), layer.range_grid("input")
    assert zero_point is not None
    steps = scale_x * smoothing
    x_hat = ((x.detach() * steps.reciprocal()).round().clamp(-zero_point, 255 - zero_point) * steps).requires_grad_()
    weight = layer.weight.detach() * smoothing
    w_hat = (
        (weight / scales.weight.reshape(-1, 1)).round() * scales.weight.reshape(-1, 1) / smoothing
    ).requires_grad_()
    torch.nn.functional.linear(x_hat, w_hat, layer.bias.detach()).square().sum().backward()
    torch.testing.assert_close(x.grad, x_hat.grad, rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(layer.weight.grad, w_hat.grad, rtol=2e-4, atol=2e-3)


def test_an_input_that_is_not_finite_is_refused_with_its_layer() -> None:
    network = make_classifier()
    with torch.no_grad():
        network.get_parameter("layers.0.ffn_norm.bias")[3] = float("nan")
    model = prepared(network, smoothed(0.85))
    with pytest.raises(CalibrationError, match=r"layers\.1\.query: the input of this layer is infinite or NaN"):
        calibrate(model, [make_batch(0)])
    assert not any(layer.calibrating for layer in quantized_layers(model)[0].values())


@pytest.mark.parametrize("strength", [-0.1, 1.5, float("nan")])
def test_a_strength_outside_its_range_is_refused(strength: float) -> None:
    with pytest.raises(SchemeError, match=r"smoothing is .*; allowed: 0 \(none\) to 1"):
        Quantizer(smoothing=strength)


def test_only_a_fixed_input_can_be_smoothed() -> None:
    dynamic = preset("dynamic")
    slot = dynamic.slots["ffn_in"]
    assert slot.input is not None
    assert slot.weight is not None
    for changed in (
        replace(slot, input=replace(slot.input, smoothing=0.5)),
        replace(slot, weight=replace(slot.weight, smoothing=0.5)),
    ):
        with pytest.raises(SchemeError, match=r"smoothing.* is 0\.5; allowed: 0"):
            replace(dynamic, slots={**dynamic.slots, "ffn_in": changed})


def test_without_strength_nothing_changes() -> None:
    def tensors(scheme: Scheme) -> dict[str, Tensor]:
        model = prepared(make_classifier(), scheme)
        calibrate(model, [make_batch(0)])
        return convert(model)

    plain, ones = tensors(smoothed(0.0)), tensors(preset("static"))
    assert not any(name.endswith("input_smoothing") for name in plain)
    assert any(name.endswith("input_smoothing") for name in ones)
