"""Inputs of 4 bits, and ranges that follow the least squared error or are learned, against float64 and int64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from q8core.errors import CalibrationError, SchemeError
from q8core.quant import Quantizer, Scheme, SiteScheme, preset
from q8core.quant.ops.arithmetic import asymmetric_grid, quantize
from q8core.quant.ops.passes import to_grid
from q8core.quant.qat.context import ForwardContext
from q8core.quant.qat.convert import convert
from q8core.quant.qat.layers import QATLinear
from q8core.quant.qat.prepare import calibrate, learned_steps, master_weights
from q8core.quant.quantizer import PER_CHANNEL, Grid, Rule
from q8core.quant.schemes.scheme import LINEAR_SLOTS
from tests.quant.conftest import make_batch, make_classifier, plan_for, prepared, site_plan
from tests.quant.integer_reference import IntegerBert

RULES: tuple[Rule, ...] = ("ema", "mse", "learned")
GRIDS: tuple[Grid, ...] = ("symmetric", "asymmetric")
EACH_RULE = pytest.mark.parametrize("rule", RULES)
EACH_GRID = pytest.mark.parametrize("grid", GRIDS)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gelus(*shape: int, seed: int = 0) -> Tensor:
    return torch.nn.functional.gelu(2 * random(*shape, seed=seed))


def with_inputs(read: Quantizer, base: str = "q8bert") -> Scheme:
    slots = dict(preset(base).slots)
    for slot in LINEAR_SLOTS:
        slots[slot] = replace(slots[slot], input=read)
    return replace(preset(base), name="inputs", slots=slots)


def make_linear(read: Quantizer, **scheme: Any) -> QATLinear:
    linear = nn.Linear(48, 24)
    with torch.no_grad():
        linear.weight.copy_(random(24, 48, seed=1) * 0.1)
        linear.bias.copy_(random(24, seed=2))
    site = SiteScheme(weight=PER_CHANNEL, input=read)
    rules, context = replace(preset("q8bert"), **scheme), ForwardContext(ignore_padding=True)
    return QATLinear(linear, plan=site_plan("l", linear, site), scheme=rules, context=context).train()


@given(low=st.floats(0, 100, width=32), high=st.floats(0, 100, width=32))
def test_a_grid_of_4_bits_has_16_values_and_an_even_zero_point(low: float, high: float) -> None:
    scale, zero_point = asymmetric_grid(torch.tensor(low), torch.tensor(high), 4)
    assert zero_point in range(0, 16, 2)
    x = torch.linspace(-low - 1, high + 1, 1000)
    q = quantize(x, scale, zero_point, 4)
    assert -zero_point <= float(q.min()) <= float(q.max()) <= 15 - zero_point
    inside = x.clamp(-low, high)
    assert float((quantize(inside, scale, zero_point, 4) * scale - inside).abs().max()) <= 1.51 * float(scale)
    assert torch.equal(to_grid(x.reshape(10, 100), scale, torch.bfloat16, zero_point, 4).float(), q.reshape(10, 100))
    assert set(quantize(x, scale, None, 4).unique().tolist()) <= set(range(-7, 8))


@EACH_GRID
@EACH_RULE
def test_one_linear_of_4_bits_equals_int64(rule: Rule, grid: Grid) -> None:
    layer = make_linear(Quantizer(bits=4, rule=rule, grid=grid))
    x = gelus(5, 7, 48, seed=3)
    start(layer, x)
    y = layer(x).detach()
    scale, zero_point = layer.range_grid("input")
    scale_w = layer.scales().weight
    low, high = (-7, 7) if zero_point is None else (-zero_point, 15 - zero_point)
    x_q = (x * scale.reciprocal()).round().clamp(low, high).long()
    assert len(x_q.unique()) >= 8
    w_q = quantize(layer.weight.detach(), scale_w.reshape(-1, 1)).long()
    r = scale * scale_w
    assert torch.equal(y, (x_q @ w_q.T).float() * r + layer.bias_i32(scale, scale_w).float() * r)


def start(layer: QATLinear, x: Tensor) -> None:
    """Calibrate one layer alone."""
    calibrate(Alone(layer), [{"input": x}])


class Alone(nn.Module):
    def __init__(self, layer: QATLinear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, input: Tensor) -> Tensor:
        return self.layer(input)


@EACH_GRID
@EACH_RULE
@pytest.mark.parametrize("bits", [8, 4])
def test_whole_model_equals_an_integer_bert(rule: Rule, grid: Grid, bits: int) -> None:
    scheme = with_inputs(Quantizer(bits=bits, rule=rule, grid=grid, gradient="masked"))
    network = make_classifier()
    model = prepared(network, scheme).train()
    calibrate(model, [make_batch(seed) for seed in range(2)])
    for seed in range(3):
        model(**make_batch(seed))
    tensors = convert(model.eval())
    batch = make_batch(11)
    with torch.no_grad():
        got = model(**batch).numpy()
    integer = IntegerBert(plan_for(make_classifier(), scheme), tensors)
    expected = integer.logits(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"])
    assert np.median(np.abs(got - expected)) < 1e-5 * np.abs(expected).max()
    assert np.abs(got - expected).max() < 5e-2 * np.abs(expected).max()


@EACH_GRID
def test_a_calibrated_range_has_the_least_squared_error(grid: Grid) -> None:
    x = gelus(400, 48, seed=4)
    x[3, 3] = 40.0

    def error(rule: Rule) -> float:
        layer = make_linear(Quantizer(bits=4, rule=rule, grid=grid))
        start(layer, x)
        scale, zero_point = layer.range_grid("input")
        return float((quantize(x, scale, zero_point, 4) * scale - x).square().sum())

    assert error("learned") == pytest.approx(error("mse"), rel=1e-3)
    assert error("mse") < 0.7 * error("ema")


@EACH_GRID
def test_a_range_follows_the_least_squared_error(grid: Grid) -> None:
    """The step moves to sum(x q) / sum(q^2) of the batch, by the share that a moving average has."""
    layer = make_linear(Quantizer(bits=4, rule="mse", grid=grid), ema_decay=0.75, ema_debias=False)
    start(layer, gelus(20, 48, seed=5))
    before, zero_point = layer.range_grid("input")
    x = 1.3 * gelus(30, 48, seed=6)
    q = quantize(x, before, zero_point, 4).double()
    best = float((x.double() * q).sum() / q.square().sum())
    layer(x)
    after, zero_after = layer.range_grid("input")
    assert zero_after == zero_point
    assert best > 1.02 * float(before)
    assert float(after) == pytest.approx(0.75 * float(before) + 0.25 * best, rel=1e-4)
    layer(torch.zeros(2, 48))
    assert torch.equal(layer.range_grid("input")[0], after)


@EACH_GRID
def test_a_learned_step_is_drawn_to_the_least_squared_error(grid: Grid) -> None:
    layer = make_linear(Quantizer(bits=4, rule="learned_mse", grid=grid, gradient="masked"))
    start(layer, gelus(20, 48, seed=5))
    before, zero_point = layer.range_grid("input")
    x = 1.3 * gelus(30, 48, seed=6)
    q = quantize(x, before, zero_point, 4).double()
    best = float((x.double() * q).sum() / q.square().sum())
    layer(x).sum().backward()
    after, zero_after = layer.range_grid("input")
    assert zero_after == zero_point
    assert float(after) == pytest.approx(float(before) * (best / float(before)) ** 0.01, rel=1e-6)
    assert float(after) > float(before)
    assert layer.input_log_step is not None
    assert layer.input_log_step.grad is not None
    layer.eval()(x)
    assert torch.equal(layer.range_grid("input")[0], after)


@pytest.mark.parametrize("rule", ["mse", "learned", "learned_mse"])
def test_training_without_a_range_to_start_from_is_refused(rule: Rule) -> None:
    layer = make_linear(Quantizer(bits=4, rule=rule, grid="asymmetric"))
    with pytest.raises(CalibrationError, match=rf"^l: training of an input of rule '{rule}' starts from a range"):
        layer(random(3, 48))


@EACH_GRID
def test_a_step_is_learned_and_the_zero_point_stays(grid: Grid) -> None:
    layer, x = make_linear(Quantizer(bits=4, rule="learned", grid=grid, gradient="masked")), gelus(30, 48, seed=7)
    start(layer, x)
    scale, zero_point = layer.range_grid("input")
    assert layer.input_log_step is not None
    direction = random(30, 24, seed=8)
    x.requires_grad_()
    (layer(x) * direction).sum().backward()
    w_hat = quantize(layer.weight.detach(), layer.scales().weight.reshape(-1, 1)) * layer.scales().weight.reshape(-1, 1)
    through = direction @ w_hat
    v = x.detach() / scale
    low, high = (-7, 7) if zero_point is None else (-zero_point, 15 - zero_point)
    clamped = (v.round() < low) | (v.round() > high)
    assert 0.001 < float(clamped.float().mean()) < 0.2
    assert x.grad is not None
    torch.testing.assert_close(x.grad, through * ~clamped)
    inside = (v >= low) & (v <= high)
    move = torch.where(inside, v.round() - v, v.clamp(low, high)) * scale
    assert layer.input_log_step.grad is not None
    torch.testing.assert_close(layer.input_log_step.grad, (move * through).sum(), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        layer.input_log_step += 0.5
    moved, zero_after = layer.range_grid("input")
    torch.testing.assert_close(moved, scale * np.exp(0.5))
    assert zero_after == zero_point


def test_queries_keys_and_values_learn_one_step_together() -> None:
    model = prepared(make_classifier(), with_inputs(Quantizer(rule="learned", grid="asymmetric"))).train()
    calibrate(model, [make_batch(0)])
    names = {name for name in learned_steps(model) if name.startswith("layers.0.")}
    assert names == {f"layers.0.{slot}.input_log_step" for slot in ("query", "attention_output", "ffn_in", "ffn_out")}
    assert not names & set(master_weights(model))
    assert not names & set(convert(model.eval()))
    model.train()(**make_batch(1)).square().sum().backward()
    step = model.get_submodule("layers.0.query").input_log_step
    assert isinstance(step, nn.Parameter)
    assert step.grad is not None
    assert float(step.grad) != 0


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"bits": 5}, r"input\.bits of one scale a tensor is 5; allowed: 4, 8"),
        ({"bits": 4, "granularity": "token", "rule": "max"}, r"input\.bits of one scale a token is 4; allowed: 8"),
        ({"rule": "twn"}, r"input\.rule of one scale a tensor is 'twn'; allowed: ema, mse, learned"),
        ({"rule": "mse", "smoothing": 0.5}, r"input\.smoothing with rule 'mse' is 0\.5; allowed: 0"),
        ({"granularity": "token", "rule": "max", "gradient": "masked"}, r"input\.gradient of one scale a token"),
    ],
)
def test_inputs_that_do_not_fit_together_are_refused(values: dict[str, Any], found: str) -> None:
    read = Quantizer(**{"rule": "ema", **values})
    base = preset("q8bert")
    with pytest.raises(SchemeError, match=found):
        replace(base, slots={**base.slots, "ffn_in": replace(base.slots["ffn_in"], input=read)})


def test_smoothing_and_learned_weights_are_refused_together() -> None:
    base = preset("q8bert-smooth")
    site = replace(base.slots["ffn_in"], weight=Quantizer(bits=4, rule="learned", granularity="channel"))
    with pytest.raises(SchemeError, match=r"slot ffn_in: input\.smoothing is 0\.85 with a weight of rule 'learned'"):
        replace(base, slots={**base.slots, "ffn_in": site})
