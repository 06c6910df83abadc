"""Split weights against the paper's formulas in float64, two binary products in int64, and ternary weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from q8core.errors import CalibrationError, SchemeError
from q8core.model.head import HeadSpec
from q8core.quant import Plan, Quantizer, SiteScheme, preset
from q8core.quant.qat.context import ForwardContext
from q8core.quant.qat.convert import convert
from q8core.quant.qat.layers import QATLinear
from q8core.quant.quantizer import STATIC
from q8core.quant.rules.split import Levels, split, split_grid, split_integers
from tests.quant.conftest import make_batch, make_classifier, plan_for, prepared, site_plan

Array = np.ndarray[Any, np.dtype[Any]]
SPLIT = Quantizer(bits=2, grid="split", rule="mean", granularity="channel")
TERNARY = Quantizer(bits=2, rule="twn", granularity="channel")


def random(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def binary(w: Array) -> Array:
    return np.abs(w).mean() * np.where(w >= 0, 1.0, -1.0)


def ternary(w: Array) -> Array:
    kept = np.abs(w) > 0.7 * np.abs(w).mean()
    return np.where(kept, np.abs(w)[kept].mean() * np.sign(w), 0.0)


def halves_by_the_formulas(w: Array) -> tuple[Array, Array]:
    """w1 and w2 of one scope, value by value."""
    kept, size = ternary(w) != 0, np.abs(w)
    b = (size[kept].mean() * w.size - size.sum()) / (2 * (~kept).sum())
    w1 = np.where(w > 0, w + b, b)
    w2 = w - w1
    a = (size[kept].sum() + np.abs(w2)[~kept].sum() - np.abs(w1)[~kept].sum()) / (2 * size[kept].sum())
    return np.where(kept, a * w, w1), np.where(kept, (1 - a) * w, w2)


def test_halves_are_those_of_the_formulas_and_their_signs_are_the_ternary_weight() -> None:
    rows = random(20, 90)
    difference = split(rows).numpy()
    for w, own in zip(rows.double().numpy(), difference, strict=True):
        w1, w2 = halves_by_the_formulas(w)
        np.testing.assert_allclose(own, w1 - w2, atol=1e-15, rtol=0)
        found = binary((w + own) / 2) + binary((w - own) / 2)
        np.testing.assert_allclose(found, ternary(w), atol=1e-16, rtol=0)
        assert len({-1.0, 0.0, 1.0} & {*np.sign(ternary(w))}) == 3


def test_weights_without_a_zero_and_of_zeros_alone() -> None:
    same = torch.tensor([[0.5, -0.5, 0.5, -0.5], [0.0, 0.0, -0.0, 0.0]])
    difference = split(same)
    assert torch.equal(difference[0], torch.zeros(4))
    scale, levels = split_grid(same, difference.float())
    assert levels == (1, 0)
    real = split_integers(same, difference.float(), levels) * scale.unsqueeze(1)
    assert torch.equal(real, torch.tensor([[0.5, -0.5, 0.5, -0.5], [0.0, 0.0, 0.0, 0.0]]))


def test_one_sign_outweighing_the_rest_leaves_a_usable_grid() -> None:
    """TWN keeps one value of a hundred here, and no halves have these means."""
    row = torch.full((1, 100), 0.6)
    row[0, 0] = 40.0
    scale, levels = split_grid(row, split(row).float())
    found = split_integers(row, split(row).float(), levels) * scale
    assert found[0, 0] > found[0, 1:].max()
    assert found[0, 1:].abs().max() <= found[0, 0] / 2


@pytest.mark.parametrize("means", [(0.5, 0.5), (0.52, 0.48), (0.6, 0.4), (0.3, 0.7), (1.0, 0.01)])
def test_levels_are_on_a_small_grid_near_both_means(means: tuple[float, float]) -> None:
    first, second = (mean * torch.where(random(6, 50, seed) >= 0, 1.0, -1.0) for seed, mean in enumerate(means))
    weight, difference = first + second, first - second
    scale, levels = split_grid(weight, difference)
    assert 1 <= levels.largest <= 16
    assert abs(levels.other) <= levels.largest
    found = (split_integers(weight, difference, levels) * scale.unsqueeze(1)).numpy()
    signs = first.sign().numpy(), second.sign().numpy()
    expected = means[0] * signs[0] + means[1] * signs[1]
    np.testing.assert_allclose(found, expected, atol=sum(means) / 32 + 1e-6, rtol=0)
    agree = signs[0] == signs[1]
    np.testing.assert_allclose(found[agree], expected[agree], atol=1e-6, rtol=0)
    assert (levels.other == 0) == (abs(means[0] - means[1]) < sum(means) / 32)


def layer_of(weight: Tensor, quantizer: Quantizer) -> QATLinear:
    linear = nn.Linear(weight.shape[1], len(weight))
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.zero_()
    site = SiteScheme(weight=quantizer, input=STATIC)
    plan = site_plan("l", linear, site)
    return QATLinear(linear, plan=plan, scheme=preset("q8bert"), context=ForwardContext(ignore_padding=True)).train()


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_at_first_a_layer_computes_what_the_ternary_one_does(granularity: Any) -> None:
    weight, x = random(12, 64), random(5, 64, seed=3)
    halves, three = (layer_of(weight, replace(each, granularity=granularity)) for each in (SPLIT, TERNARY))
    torch.testing.assert_close(halves(x), three(x), atol=1e-6, rtol=1e-5)
    assert "weight_steps.difference" in halves.state_dict()  # which a resumed run needs


def test_the_gradient_of_both_halves_is_that_of_the_weight() -> None:
    weight, x = random(12, 64), random(5, 64, seed=3)
    halves, three = (layer_of(weight, each) for each in (SPLIT, TERNARY))
    for layer in (halves, three):
        layer(x).square().sum().backward()
    assert halves.weight.grad is not None
    assert three.weight.grad is not None
    torch.testing.assert_close(halves.weight.grad, three.weight.grad, atol=1e-5, rtol=1e-4)


def test_what_is_executed_is_two_binary_products() -> None:
    """Of means that differ, as training may leave them: each half's sign is a bit of the code."""
    network = prepared(make_classifier(), preset("binary-split")).train()
    layer = network.get_submodule("layers.0.ffn_in")
    assert isinstance(layer, QATLinear)
    with torch.no_grad():
        layer.weight_steps.difference += 0.3 * layer.weight
    network(**make_batch())
    tensors = {name: tensor.numpy() for name, tensor in convert(network).items() if name.startswith("layers.0.ffn_in")}
    bits = np.unpackbits(tensors["layers.0.ffn_in.weight"], axis=1, bitorder="little").reshape(64, 32, 2).astype(int)
    second, first = 2 * bits[..., 0] - 1, 2 * bits[..., 1] - 1
    half = layer.weight.detach().numpy() / 2, layer.weight_steps.difference.numpy() / 2
    assert np.array_equal(first, np.where(half[0] + half[1] >= 0, 1, -1))
    assert np.array_equal(second, np.where(half[0] - half[1] >= 0, 1, -1))
    levels = tensors["layers.0.ffn_in.weight_levels"].astype(np.int64)
    assert 0 < levels[2] < levels[3]  # m1 > m2
    x = np.random.default_rng(0).integers(-128, 128, (7, 32))
    twice = (levels[3] + levels[2]) * (x @ first.T) + (levels[3] - levels[2]) * (x @ second.T)
    whole = layer.weight_grid().halves
    assert whole is not None
    integers = split_integers(layer.weight.detach(), whole.difference, whole.levels).numpy().astype(np.int64)
    assert np.array_equal(2 * (x @ integers.T), twice)
    assert whole.levels == Levels(int(levels[3]), int(levels[2]))


def test_what_is_not_finite_names_its_layer() -> None:
    layer = layer_of(random(12, 64), SPLIT)
    with torch.no_grad():
        layer.weight[1, 2] = float("nan")
    with pytest.raises(CalibrationError, match=r"^l\.weight has infinite or NaN values"):
        layer.weight_grid()


@pytest.mark.parametrize(
    ("slot", "change", "words"),
    [
        ("key", {"rule": "twn"}, "weight.rule of a split grid is 'twn'; allowed: mean"),
        ("key", {"bits": 1}, "weight.bits with rule 'mean' is 1; allowed: 2"),
        ("word_embeddings", {"grid": "split", "rule": "mean"}, "weight.grid of a table is 'split'; allowed: symmetric"),
    ],
)
def test_what_a_split_grid_is_not_for(slot: str, change: dict[str, Any], words: str) -> None:
    scheme = preset("binary-split")
    weight = scheme.slots[slot].weight
    assert weight is not None
    with pytest.raises(SchemeError, match=words):
        replace(scheme, slots={**scheme.slots, slot: replace(scheme.slots[slot], weight=replace(weight, **change))})
    with pytest.raises(SchemeError, match=r"input\.smoothing is 0\.5 with a weight of grid 'split'; allowed: 0"):
        scheme.smoothed(0.5)


def test_the_preset_is_for_any_network() -> None:
    network = make_classifier()
    plan = plan_for(network, preset("binary-split"))
    assert plan.tensors["layers.0.query.weight"].shape == (32, 8)
    assert plan.tensors["layers.0.query.weight_levels"].shape == (4,)
    assert Plan.of(network.spec, HeadSpec("first", 3, "tanh"), preset("binary-split")).sites.keys() == plan.sites.keys()
