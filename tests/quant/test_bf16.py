"""Training in bfloat16 against a plain float32 simulation: as near as the roundings that bfloat16 adds allow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from q8core.quant import SlotScheme, dequantize, prepare, quantize
from q8core.quant.layers import weight_scale
from tests.quant.conftest import make_batch, make_classifier
from tests.quant.test_asymmetric import symmetric
from tests.quant.test_layers import SLOT_KINDS, make_linear, random, reference_linear

ROUNDING = 2.0**-8
"""The largest relative error of one rounding to bfloat16, which has 8 significant bits."""


@pytest.mark.parametrize("slot", SLOT_KINDS, ids=lambda slot: f"{slot.weight}-{slot.activation}")
def test_a_layer_is_off_by_its_roundings_and_no_more(slot: SlotScheme) -> None:
    """Operands of the forward product and of the weight's gradient are integers: exact, unless scaled per token.

    What is rounded: each sum, once; the output again after scale and bias; the dequantized weight in the input's
    gradient; with a scale per token, the dequantized input in the weight's gradient. Float32 rounds 2**16 times finer,
    in sums of up to 48 terms: a hundredth more.
    """
    layer = make_linear(48, 24, slot)
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

    scale_w = weight_scale(layer.weight, slot.weight, "l").reshape(-1, 1)
    w_hat = dequantize(quantize(layer.weight.detach(), scale_w), scale_w)
    g, inputs = direction.float().reshape(-1, 24), x.detach().reshape(-1, 48)
    step = float(layer.range_scale("output")) if slot.requantize_output else 0.0
    product = (plain - layer.bias.detach()).abs() + step
    slack = 1.01 * ROUNDING
    per_token = slack * (g.abs().t() @ inputs.abs()) if slot.activation == "dynamic" else 0.0
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


@pytest.mark.parametrize("seed", range(3))
def test_a_models_gradient_moves_less_than_by_quantizing(seed: int) -> None:
    """A rounding to bfloat16 is at most half a step of the 8-bit grid, max / 254: what quantizing does everywhere."""

    def gradient(*, quantized: bool, bf16: bool) -> Tensor:
        model = make_classifier(seed, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        if quantized:
            prepare(model, symmetric())
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(**make_batch(seed), labels=torch.arange(6) % 3).loss
        loss.backward()
        return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])

    simulated = gradient(quantized=True, bf16=False)
    quantizing = (simulated - gradient(quantized=False, bf16=False)).norm()
    assert 0 < (gradient(quantized=True, bf16=True) - simulated).norm() < quantizing
