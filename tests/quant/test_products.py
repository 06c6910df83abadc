"""The quantized attention products against int64 and float64, and their gradients against autograd in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cosine_similarity

from q8core.errors import InputError
from q8core.quant.ops.arithmetic import dequantize
from q8core.quant.ops.products import (
    exponentials,
    integer_scores,
    probability_sums,
    quantize_probabilities_,
    relative_bias,
    score_factor,
    weighted_sums,
)
from q8core.quant.qat.fake_attention import ProductScales, quantized_attention

SCALES = ProductScales(torch.tensor([0.031]), torch.tensor([0.027]), torch.tensor([0.011]))


def integers(*shape: int, seed: int = 0, largest: int = 127) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-largest, largest + 1, shape, generator=generator).float()


def operands(queries: int = 9, keys: int = 14, size: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of two sequences and three heads, on their grids."""
    shapes = ((2, 3, queries, size), (2, 3, keys, size), (2, 3, keys, size))
    grids = (dequantize(integers(*s, seed=i), SCALES[i]) for i, s in enumerate(shapes))
    q, k, v = (x.requires_grad_() for x in grids)
    return q, k, v


def straight(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


def oracle(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    hidden: Tensor | None = None,
    keep: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    rounded: bool = True,
) -> Tensor:
    """The formulas in float64 with autograd's own gradient, every rounding straight-through, or left out."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    scores = scores if bias is None else scores + bias
    scores = scores if hidden is None else scores.masked_fill(hidden, -math.inf)
    p = 255 * torch.exp(scores - scores.amax(-1, keepdim=True).detach())
    p = straight(p) if rounded else p
    p = p / p.sum(-1, keepdim=True)
    return (p if keep is None else p * keep) @ v


def doubles(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


@pytest.mark.parametrize(("size", "keys"), [(64, 7), (128, 512), (1, 518), (521, 519), (1200, 1301)])
@pytest.mark.parametrize("extreme", [True, False])
def test_sums_equal_int64(size: int, keys: int, extreme: bool) -> None:
    """Also where a sum leaves float32's integers: more than 518 keys, or heads of more than 520 columns."""
    q, k, v = (integers(n, size, seed=n) for n in (5, keys, keys))
    p = integers(5, keys, seed=3).abs()
    if extreme:  # large, of one sign and uneven: no rounded sum hits the exact one by chance
        q, k, v, p = (x.abs() % 8 + 120 for x in (q, k, v, p))
        q[0] *= -1
        p = 2 * p + 1
    scores = integer_scores(q, k)
    assert torch.equal(scores.long(), q.long() @ k.long().T)
    assert torch.equal((scores - scores[:1]).long(), (q.long() - q[:1].long()) @ k.long().T)
    assert torch.equal(weighted_sums(p, v), (p.long() @ v.long()).float())


@settings(max_examples=60, deadline=None)
@given(keys=st.integers(1, 40), factor=st.floats(1e-6, 1.0), seed=st.integers(0, 999))
def test_probabilities_are_rounded_exponentials(keys: int, factor: float, seed: int) -> None:
    scores = integers(6, keys, seed=seed, largest=127 * 127)
    exact = scores.double().numpy()
    e = exponentials(scores.clone(), factor)
    p = quantize_probabilities_(e).double().numpy()
    expected = 255 * np.exp((exact - exact.max(-1, keepdims=True)) * np.float64(np.float32(factor)))
    assert np.array_equal(p, np.rint(p))
    assert (p.max(-1) == 255).all()
    assert p.min() >= 0
    assert (np.abs(p - expected) <= 0.5 + 1e-3).all()  # rounded to nearest, but for float32's exp at a tie
    assert np.array_equal(probability_sums(e).numpy()[:, 0], p.sum(-1))


def test_a_flat_row_keeps_its_resolution() -> None:
    """384 equal scores: on a fixed grid of 1/255 each probability of 1/384 would round to 1/255 or to 0."""
    q, v = torch.zeros(1, 8), dequantize(integers(384, 8), SCALES.value)
    found = quantized_attention(q, dequantize(integers(384, 8, seed=1), SCALES.key), v, SCALES)
    torch.testing.assert_close(found[0], v.mean(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_int64(masked: bool) -> None:
    q, k, v = (x.detach() for x in operands())
    hidden = torch.arange(14) >= torch.tensor([9, 14]).reshape(2, 1, 1, 1) if masked else None
    grids = zip((q, k, v), SCALES, strict=True)
    q_q, k_q, v_q = (np.rint(x.double().numpy() / float(scale)).astype(np.int64) for x, scale in grids)
    scores = q_q @ k_q.transpose(0, 1, 3, 2)
    if hidden is not None:
        scores = np.where(hidden.numpy(), -(10**9), scores)
    step = float(SCALES.query) * float(SCALES.key) / math.sqrt(8)
    p = np.rint(255 * np.exp((scores - scores.max(-1, keepdims=True)) * step)).astype(np.int64)
    expected = (p @ v_q) * float(SCALES.value) / p.sum(-1, keepdims=True)
    found = quantized_attention(q, k, v, SCALES, hidden).double().numpy()
    # A probability at a tie may take the other step; all others agree to float32's rounding.
    assert (np.abs(found - expected) < 1e-6).mean() > 0.99
    assert np.abs(found - expected).max() < 0.01


@settings(max_examples=30, deadline=None)
@given(padding=st.integers(1, 70), seed=st.integers(0, 999))
def test_padding_and_order_of_keys_change_no_bit(padding: int, seed: int) -> None:
    q, k, v = (x.detach() for x in operands())
    expected = quantized_attention(q, k, v, SCALES)
    more = [torch.cat([x, dequantize(integers(2, 3, padding, 8, seed=seed), s)], dim=2) for x, s in
            ((k, SCALES.key), (v, SCALES.value))]  # fmt: skip
    order = torch.randperm(14 + padding, generator=torch.Generator().manual_seed(seed))
    hidden = (torch.arange(14 + padding) >= 14)[order].expand(1, 1, 1, -1)
    assert torch.equal(quantized_attention(q, *(x[:, :, order] for x in more), SCALES, hidden), expected)


def test_a_query_that_sees_no_key_gets_zero_and_gives_no_gradient() -> None:
    q, k, v = operands()
    hidden = torch.tensor([True, False]).reshape(2, 1, 1, 1)
    found = quantized_attention(q, k, v, SCALES, hidden)
    assert not found[0].any()
    assert found[1].any()
    found.sum().backward()
    for x in (q, k, v):
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()
        assert not x.grad[0].any()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradients_are_straight_through(masked: bool, dropout: float) -> None:
    inputs = operands()
    hidden = torch.arange(14) >= torch.tensor([9, 14]).reshape(2, 1, 1, 1) if masked else None
    torch.manual_seed(5)
    found = quantized_attention(*inputs, SCALES, hidden, dropout)
    torch.manual_seed(5)
    keep = torch.empty(2, 3, 9, 14, dtype=torch.bool).bernoulli_(1 - dropout).double() / (1 - dropout)
    exact = doubles(*inputs)
    expected = oracle(*exact, hidden, keep if dropout else None)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-3)
    grad = integers(*found.shape, seed=8) / 127
    found.backward(grad)
    expected.backward(grad.double())
    for ours, theirs in zip(inputs, exact, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(
            ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-3 * float(theirs.grad.abs().max())
        )


@pytest.mark.parametrize("flat", ["query", "key"])
def test_gradients_are_those_of_softmax_where_nothing_is_rounded(flat: str) -> None:
    """Equal scores have equal probabilities, which are on the grid."""
    inputs = operands()
    with torch.no_grad():
        inputs[0 if flat == "query" else 1].zero_()
    exact = doubles(*inputs)
    grad = integers(2, 3, 9, 8, seed=8)
    quantized_attention(*inputs, SCALES).backward(grad)
    torch.nn.functional.scaled_dot_product_attention(*exact).backward(grad.double())
    for ours, theirs in zip(inputs, exact, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad.float(), rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]
    assert exact[1 if flat == "query" else 0].grad.abs().max() == 0  # type: ignore[union-attr]


def test_gradients_are_near_those_of_softmax() -> None:
    inputs = operands(keys=60)
    exact = doubles(*inputs)
    grad = integers(2, 3, 9, 8, seed=8)
    quantized_attention(*inputs, SCALES).backward(grad)
    oracle(*exact, rounded=False).backward(grad.double())
    for ours, theirs in zip(inputs, exact, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert cosine_similarity(ours.grad.double().flatten(), theirs.grad.flatten(), dim=0) > 0.9995


def test_descent_lowers_a_loss() -> None:
    """Queries and keys learn which value to pick, through two roundings."""
    torch.manual_seed(0)
    q, k = (torch.zeros(1, 4, 8).normal_(std=0.3).requires_grad_() for _ in range(2))
    v = torch.eye(4, 8).unsqueeze(0)
    scales = ProductScales(*(torch.tensor([limit / 127]) for limit in (8.0, 8.0, 1.0)))
    wanted = v.roll(1, dims=1)
    optimizer = torch.optim.Adam([q, k], lr=0.1)
    losses: list[float] = []
    for _ in range(60):
        loss = (quantized_attention(q, k, v, scales) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.02 * losses[0]


def test_mixed_precision_is_near_float32() -> None:
    inputs, again = operands(keys=40), operands(keys=40)
    grad = integers(2, 3, 9, 8, seed=8)
    expected = quantized_attention(*inputs, SCALES)
    expected.backward(grad)
    with torch.autocast("cpu", torch.bfloat16):
        found = quantized_attention(*again, SCALES)
    assert found.dtype == torch.bfloat16
    found.backward(grad.bfloat16())
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.02 * float(expected.detach().abs().max()))
    for ours, theirs in zip(again, inputs, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert ours.grad.dtype == torch.float32
        assert cosine_similarity(ours.grad.flatten(), theirs.grad.flatten(), dim=0) > 0.999
    with torch.autocast("cpu", torch.float16), pytest.raises(InputError, match="must use bfloat16"):
        quantized_attention(*again, SCALES)


def test_the_score_factor_is_vaswanis() -> None:
    assert score_factor(64, torch.tensor([0.5]), torch.tensor([0.25])) == 0.5 * 0.25 / 8


def biases(*shape: int) -> Tensor:
    return (integers(*shape, seed=4) / 60).requires_grad_()


@settings(max_examples=60, deadline=None)
@given(keys=st.integers(1, 40), factor=st.floats(1e-6, 1.0), seed=st.integers(0, 999))
def test_a_bias_is_added_to_scaled_scores(keys: int, factor: float, seed: int) -> None:
    scores, bias = integers(6, keys, seed=seed, largest=127 * 127), integers(6, keys, seed=seed + 1) / 30
    x = scores.numpy() * np.float32(factor) + bias.numpy()  # both in float32
    expected = np.exp((x - x.max(-1, keepdims=True)).astype(np.float64))
    found = exponentials(scores.clone(), factor, bias)
    assert x.dtype == np.float32
    assert (found.amax(-1) == 1).all()
    assert np.abs(found.double().numpy() - expected).max() <= 1e-6


def test_a_bias_is_added_in_attention() -> None:
    q, k, v = (x.detach() for x in operands())
    bias = biases(3, 9, 14).detach()
    q_q, k_q, v_q = (
        np.rint(x.double().numpy() / float(s)).astype(np.int64) for x, s in zip((q, k, v), SCALES, strict=True)
    )
    x = (q_q @ k_q.transpose(0, 1, 3, 2)) * (
        float(SCALES.query) * float(SCALES.key) / math.sqrt(8)
    ) + bias.double().numpy()
    p = np.rint(255 * np.exp(x - x.max(-1, keepdims=True))).astype(np.int64)
    expected = (p @ v_q) * float(SCALES.value) / p.sum(-1, keepdims=True)
    found = quantized_attention(q, k, v, SCALES, bias=bias).double().numpy()
    assert (np.abs(found - expected) < 1e-6).mean() > 0.99
    assert np.abs(found - expected).max() < 0.01


@pytest.mark.parametrize("shape", [(3, 9, 14), (2, 3, 9, 14), (1, 3, 1, 14)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_bias_gets_the_gradient_of_what_it_was_added_to(
    shape: tuple[int, ...], masked: bool, dropout: float
) -> None:
    inputs, bias = operands(), biases(*shape)
    hidden = torch.arange(14) >= torch.tensor([9, 14]).reshape(2, 1, 1, 1) if masked else None
    torch.manual_seed(5)
    found = quantized_attention(*inputs, SCALES, hidden, dropout, bias)
    torch.manual_seed(5)
    keep = torch.empty(2, 3, 9, 14, dtype=torch.bool).bernoulli_(1 - dropout).double() / (1 - dropout)
    exact = doubles(*inputs, bias)
    expected = oracle(*exact[:3], hidden, keep if dropout else None, exact[3])
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-3)
    grad = integers(*found.shape, seed=8) / 127
    found.backward(grad)
    expected.backward(grad.double())
    for ours, theirs in zip((*inputs, bias), exact, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(
            ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-3 * float(theirs.grad.abs().max())
        )


def test_a_query_that_sees_no_key_gets_zero_with_a_bias_too() -> None:
    inputs, bias = operands(), biases(3, 9, 14)
    hidden = torch.tensor([True, True]).reshape(2, 1, 1, 1)
    found = quantized_attention(*inputs, SCALES, hidden, bias=bias)
    found.sum().backward()
    assert not found.any()
    assert bias.grad is not None
    assert not bias.grad.any()


@settings(max_examples=40, deadline=None)
@given(positions=st.integers(1, 12), data=st.data())
def test_a_relative_bias_depends_on_the_distance_alone(positions: int, data: st.DataObject) -> None:
    keys, queries = (data.draw(st.integers(1, positions)) for _ in range(2))
    table = torch.arange(2.0 * (2 * positions - 1)).view(2, -1).requires_grad_()
    found = relative_bias(table, queries, keys)
    assert found.shape == (2, queries, keys)
    for head in range(2):
        for i in range(queries):
            for j in range(keys):
                assert found[head, i, j] == table[head, positions - 1 + j - i]
    found.sum().backward()
    assert table.grad is not None
    assert float(table.grad.sum()) == 2 * queries * keys
