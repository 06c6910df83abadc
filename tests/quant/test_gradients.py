"""Gradients of quantizers: learned steps against finite differences, masks, and what passes unchanged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from q8core.quant import Quantizer, SiteScheme, preset
from q8core.quant.qat.context import ForwardContext
from q8core.quant.qat.embedding import QATEmbedding
from q8core.quant.qat.fake_quant import gated
from q8core.quant.qat.layers import QATLinear
from q8core.quant.quantizer import STATIC, Gradient
from tests.quant.conftest import site_plan

LEARNED = Quantizer(bits=4, rule="learned", granularity="channel")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def limits(low: float, high: float) -> tuple[Tensor, Tensor]:
    return torch.tensor(low), torch.tensor(high)


def surrogate(x: np.ndarray, log_step: float, start: float, low: int, high: int) -> np.ndarray:
    """s clamp(round(x / s)) with each rounding a constant distance, that at the step `start`; float64."""
    step, v = np.exp(log_step), x / start
    inside = (v >= low) & (v <= high)
    return np.where(inside, x + step * (np.rint(v) - v), step * np.clip(v, low, high))


@pytest.mark.parametrize(("low", "high"), [(-7, 7), (-1, 1), (-4, 11), (0, 15)])
def test_a_learned_step_has_the_gradient_of_finite_differences(low: int, high: int) -> None:
    x, direction = random(40, 30, seed=1) * 2, random(40, 30, seed=2)
    log_step = torch.tensor(-1.3, requires_grad=True)
    step = log_step.detach().exp().reshape(1)
    y = gated(x, log_step, steps=step, limits=limits(low, high), masked=True)
    assert torch.equal(y, x)
    (found,) = torch.autograd.grad(y, log_step, direction)
    w, s = direction.double().numpy(), float(step)
    above, below = ((surrogate(x.double().numpy(), -1.3 + h, s, low, high) * w).sum() for h in (1e-5, -1e-5))
    assert float(found) == pytest.approx((above - below) / 2e-5, rel=1e-3)


def test_of_each_row_its_own() -> None:
    x, direction = random(6, 50, seed=3), random(6, 50, seed=4)
    log_steps = random(6, seed=5).requires_grad_()
    steps = log_steps.detach().exp().unsqueeze(1)
    (together,) = torch.autograd.grad(
        gated(x, log_steps, steps=steps, limits=limits(-3, 3), masked=False), log_steps, direction
    )
    for row in range(6):
        one = log_steps[row].detach().clone().requires_grad_()
        y = gated(x[row], one, steps=steps[row], limits=limits(-3, 3), masked=False)
        (alone,) = torch.autograd.grad(y, one, direction[row])
        torch.testing.assert_close(together[row], alone)


@pytest.mark.parametrize("masked", [True, False])
def test_a_mask_is_zero_outside_and_changes_nothing_inside(masked: bool) -> None:
    x = torch.tensor([-7.6, -7.4, -6.9, 0.0, 7.4, 7.6, 30.0], requires_grad=True)
    direction = torch.arange(1.0, 8.0)
    y = gated(x, None, steps=torch.ones(1), limits=limits(-7, 7), masked=masked)
    (found,) = torch.autograd.grad(y, x, direction)
    assert found.tolist() == ([0, 2, 3, 4, 5, 0, 0] if masked else direction.tolist())


def make_linear(weight: Quantizer) -> QATLinear:
    linear = nn.Linear(30, 8)
    with torch.no_grad():
        linear.weight.copy_(random(8, 30, seed=1))
    site = SiteScheme(weight=weight, input=STATIC)
    context = ForwardContext(ignore_padding=True)
    return QATLinear(linear, plan=site_plan("l", linear, site), scheme=preset("q8bert"), context=context).train()


def weight_gradients(layer: QATLinear) -> tuple[Tensor, Any]:
    layer.zero_grad()
    (layer(random(4, 30, seed=7)) * random(4, 8, seed=8)).sum().backward()
    assert layer.weight.grad is not None
    steps = layer.weight_steps.log_step
    return layer.weight.grad.clone(), None if steps is None else steps.grad


@pytest.mark.parametrize("rule", ["mse", "learned"])
def test_a_linear_masks_its_weight(rule: Any) -> None:
    kinds: tuple[Gradient, Gradient] = ("straight_through", "masked")
    plain, masked = (make_linear(replace(LEARNED, rule=rule, bits=2, gradient=kind)) for kind in kinds)
    through, _ = weight_gradients(plain)
    found, _ = weight_gradients(masked)
    scale = plain.weight_grid().scale.unsqueeze(1)
    outside = plain.weight.detach().abs() > 1.5 * scale
    assert 0.01 < float(outside.float().mean()) < 0.5
    assert (found[outside] == 0).all()
    assert torch.equal(found[~outside], through[~outside])


@pytest.mark.parametrize("granularity", [{"granularity": "tensor"}, {"granularity": "group", "groups": 2}, {}])
def test_a_linear_learns_its_steps(granularity: Any) -> None:
    """The gradient of the surrogate: that of the quantized weight, times how the weight moves with its step."""
    layer = make_linear(replace(LEARNED, **granularity))
    through, found = weight_gradients(layer)  # not masked: the gradient of the quantized weight itself
    rows = layer.weight_grid().rows(8).scale.double().reshape(-1, 1)
    v = layer.weight.detach().double() / rows
    move = torch.where(v.abs() <= 7, v.round() - v, v.clamp(-7, 7)) * rows
    expected = (move * through).sum(dim=1)
    scopes = layer.weight_quantizer.scales(8)
    torch.testing.assert_close(found.double(), expected.expand(8).reshape(scopes, -1).sum(dim=1), rtol=1e-4, atol=1e-5)


def test_a_step_of_gradient_descent_lowers_the_loss() -> None:
    """From steps twice too large: the loss is the squared error of the output, which the true steps have least."""
    layer = make_linear(LEARNED)
    steps = layer.weight_steps.log_step
    assert steps is not None
    x = random(64, 30, seed=3)
    with torch.no_grad():
        expected = x @ layer.weight.T + layer.bias
        steps += 0.7
    optimizer = torch.optim.Adam([steps], lr=0.02)
    losses: list[float] = []
    for _ in range(60):
        loss = (layer(x) - expected).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]


def test_rows_of_a_table_learn_only_where_they_were_read() -> None:
    table = nn.Embedding(9, 16)
    layer = QATEmbedding(table, plan=site_plan("t", table, SiteScheme(weight=replace(LEARNED, bits=2))))
    (layer(torch.tensor([[1, 4], [4, 7]])) * random(2, 2, 16, seed=1)).sum().backward()
    steps = layer.weight_steps.log_step
    assert steps is not None
    assert steps.grad is not None
    assert [row for row in range(9) if float(steps.grad[row]) != 0] == [1, 4, 7]


def test_learned_steps_start_from_the_least_squared_error() -> None:
    learned, least = make_linear(LEARNED), make_linear(replace(LEARNED, rule="mse"))
    torch.testing.assert_close(learned.weight_grid().scale, least.weight_grid().scale)
    assert {name for name, _ in learned.named_parameters()} == {"weight", "bias", "weight_steps.log_step"}


def drift(layer: QATLinear, first: int, last: int) -> list[Tensor]:
    """Steps of training whose weight moves a little each time, the same in each run: the scales that they used."""
    used: list[Tensor] = []
    for step in range(first, last):
        layer(random(3, 30, seed=1))
        used.append(layer.weight_steps.before.clone())
        with torch.no_grad():
            layer.weight += 0.003 * random(8, 30, seed=100 + step)
    return used


def test_training_follows_the_least_squared_error_and_resumes_to_the_bit() -> None:
    quantizer = replace(LEARNED, rule="mse")
    layer, resumed = make_linear(quantizer), make_linear(quantizer)
    drift(layer, 0, 70)
    resumed.load_state_dict(layer.state_dict())
    used = drift(layer, 70, 120)
    assert all(torch.equal(a, b) for a, b in zip(drift(resumed, 70, 120), used, strict=True))
    assert not torch.equal(used[-1], used[-2])
    # evaluation depends on the weight alone
    fresh = make_linear(quantizer)
    with torch.no_grad():
        fresh.weight.copy_(layer.weight)
    assert torch.equal(fresh.weight_grid().scale, layer.weight_grid().scale)
    assert float((used[-1] / fresh.weight_grid().scale - 1).abs().max()) < 0.25
