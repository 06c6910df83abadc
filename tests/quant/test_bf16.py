"""Training in bfloat16 against a plain float32 simulation: as near as the roundings that bfloat16 adds allow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from q8core.model.attention import AttentionProducts
from q8core.quant import SiteScheme
from q8core.quant.ops.arithmetic import dequantize, quantize
from q8core.training.losses import task_loss
from tests.quant.conftest import make_batch, make_classifier, prepared
from tests.quant.test_asymmetric import symmetric
from tests.quant.test_layers import SITE_KINDS, kind_name, make_linear, random, reference_linear

ROUNDING = 2.0**-8
"""The largest relative error of one rounding to bfloat16, which has 8 significant bits."""


@pytest.mark.parametrize("site", SITE_KINDS, ids=kind_name)
def test_a_layer_is_off_by_its_roundings_and_no_more(site: SiteScheme) -> None:
    """Operands of the forward product and of the weight's gradient are integers: exact, unless scaled per token.

    What is rounded: each sum, once; the output again after scale and bias; the dequantized weight in the input's
    gradient; with a scale per token, the dequantized input in the weight's gradient. Float32 rounds 2**16 times finer,
    in sums of up to 48 terms: a hundredth more.
    """
    layer = make_linear(48, 24, site)
    x = random(3, 5, 48, seed=4).requires_grad_()
    direction = random(3, 5, 24, seed=5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    parameters = [x, layer.weight, layer.bias]
    got = torch.autograd.grad(y, parameters, direction)
    layer.eval()  # with the ranges of that step
    plain = reference_linear(layer, x)
    expected = torch.autograd.grad(plain, parameters, direction.float())
    y, plain = y.detach(), plain.detach()

    scale_w = layer.weight_grid().scale.reshape(-1, 1)
    w_hat = dequantize(quantize(layer.weight.detach(), scale_w), scale_w)
    g, inputs = direction.float().reshape(-1, 24), x.detach().reshape(-1, 48)
    step = float(layer.range_scale("output")) if site.output else 0.0
    product = (plain - layer.bias.detach()).abs() + step
    slack = 1.01 * ROUNDING
    per_token = slack * (g.abs().t() @ inputs.abs()) if layer.plan.kind == "dynamic" else 0.0
    bounds = (
        slack * (product + plain.abs() + step) + step + 1e-6,
        slack * ((g.abs() @ w_hat.abs()).reshape(3, 5, 48) + expected[0].abs()),
        slack * expected[1].abs() + per_token + 1e-5,
        torch.full_like(expected[2], 1e-5),
    )
    for name, ours, theirs, bound in zip(
        ("y", "x", "weight", "bias"), (y, *got), (plain, *expected), bounds, strict=True
    ):
        worst = float(((ours.float() - theirs).abs() / bound).max())
        assert worst <= 1, (name, worst)
        assert name == "bias" or worst > 0.01, f"the bound for {name} says nothing"


class FusedProducts(AttentionProducts):
    """Torch's fused attention, which keeps scores and probabilities in float32: what is left are the layers."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, hidden_keys: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        assert bias is None
        return F.scaled_dot_product_attention(q, k, v, None if hidden_keys is None else ~hidden_keys)


def errors(seed: int, *, fused: bool) -> tuple[float, float]:
    """How far bfloat16 moves the gradient of a quantized model, and how far quantizing moves that of a float one."""

    def gradient(*, quantized: bool, bf16: bool) -> Tensor:
        model = make_classifier(seed, dropout=0.0)
        for layer in range(2 if fused else 0):
            model.set_submodule(f"layers.{layer}.attention_products", FusedProducts())
        if quantized:
            prepared(model, symmetric())
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = task_loss(model, {**make_batch(seed), "labels": torch.arange(6) % 3})
        loss.backward()
        return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])

    simulated = gradient(quantized=True, bf16=False)
    quantizing = (simulated - gradient(quantized=False, bf16=False)).norm() / simulated.norm()
    return float((gradient(quantized=True, bf16=True) - simulated).norm() / simulated.norm()), float(quantizing)


@pytest.mark.parametrize("seed", range(3))
def test_a_models_gradient_moves_less_than_by_quantizing(seed: int) -> None:
    """A rounding to bfloat16 is at most half a step of the 8-bit grid, max / 254: what quantizing does everywhere."""
    rounding, quantizing = errors(seed, fused=True)
    assert 0 < rounding < quantizing


def test_training_s_own_attention_keeps_it_so() -> None:
    """Its scores are bfloat16, too. The roundings of one model are a matter of chance: those of ten are not."""
    found = np.array([errors(seed, fused=False) for seed in range(10)])
    rounding, quantizing = np.sqrt((found**2).mean(axis=0))
    assert 0 < rounding < quantizing
    assert found[:, 0].max() < 0.1
