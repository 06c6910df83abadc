"""Training's attention against Hugging Face's own eager one, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import eager_attention_forward

from q8core.model.attention import AttentionProducts
from q8core.training.finetune import save_float
from q8core.training.model import load_model

SHAPE = (3, 7, 2, 5)
"""Batch, sequence, heads, head size."""

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def ours(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None) -> Tensor:
    return AttentionProducts().eval()(q, k, v, hidden)


def theirs(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None) -> Tensor:
    mask = None if hidden is None else hidden * torch.finfo(torch.float32).min
    attend: Any = eager_attention_forward
    return attend(nn.Module(), q, k, v, mask, scaling=SHAPE[-1] ** -0.5)[0].transpose(1, 2)


def inputs(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator).to(dtype).transpose(1, 2).requires_grad_() for _ in range(3)]


def mask() -> Tensor:
    """The first sequence sees all, the others not their ends."""
    found = torch.zeros(3, 1, 1, 7, dtype=torch.bool)
    found[1, :, :, 4:] = found[2, :, :, 1:] = True
    return found


def probabilities(attention: nn.Module, dtype: torch.dtype, hidden: Tensor | None) -> Tensor:
    """What multiplies the values: the context of the unit matrix, (batch, heads, queries, keys)."""
    q, k, _ = (x.detach() for x in inputs(dtype))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        return attention(q, k, torch.eye(7, dtype=dtype).expand(3, 2, 7, 7), hidden)


def outcome(attention: Attention, dtype: torch.dtype, hidden: Tensor | None) -> list[Tensor]:
    """Context and the gradients of query, key and value, of a loss that is no mere sum."""
    tensors = inputs(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        context = attention(*tensors, hidden)
    weights = torch.randn(context.shape, generator=torch.Generator().manual_seed(1))
    (context.float() * weights).sum().backward()
    return [context, *(each.grad for each in tensors if each.grad is not None)]


@pytest.mark.parametrize("hidden", [None, mask()], ids=["all", "padded"])
def test_float32_is_that_of_hugging_face(hidden: Tensor | None) -> None:
    found, expected = (outcome(each, torch.float32, hidden) for each in (ours, theirs))
    assert len(found) == len(expected) == 4
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("hidden", [None, mask()], ids=["all", "padded"])
def test_bfloat16_is_as_near_to_float32_as_that_of_hugging_face(hidden: Tensor | None) -> None:
    exact = outcome(theirs, torch.float32, hidden)
    found, others = (outcome(each, torch.bfloat16, hidden) for each in (ours, theirs))
    for mine, other, expected in zip(found, others, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.float() - expected).norm() <= 1.5 * (other.float() - expected).norm() + 1e-6


def test_hidden_keys_get_nothing() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        found = probabilities(AttentionProducts().eval(), dtype, mask())
        assert torch.all(found[1, :, :, 4:] == 0)
        assert torch.all(found[2, :, :, 0] == 1)


def test_dropout_only_in_training() -> None:
    plain, dropped = (probabilities(AttentionProducts(0.5).train(mode), torch.float32, None) for mode in (False, True))
    assert torch.all(plain > 0)
    assert 0.2 < (dropped == 0).float().mean() < 0.8
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * plain[kept])


def test_a_bias_is_added_to_the_scores() -> None:
    """In float64 from the formula: softmax(Q K^T / sqrt(D) + bias) V."""
    q, k, v = (x.detach() for x in inputs(torch.float32))
    bias = torch.randn(1, 2, 7, 7, generator=torch.Generator().manual_seed(3))
    scores = q.double() @ k.double().transpose(-1, -2) / SHAPE[-1] ** 0.5 + bias.double()
    expected = scores.masked_fill(mask(), -torch.inf).softmax(-1) @ v.double()
    before = bias.clone()
    found = AttentionProducts().eval()(q, k, v, mask(), bias)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(bias, before)


def test_training_uses_it_and_files_do_not_name_it(tiny_classifier: Path, tmp_path: Path) -> None:
    model = load_model(str(tiny_classifier), "classify")
    assert [type(layer.attention_products) for layer in model.network.layers] == 2 * [AttentionProducts]
    save_float(model, tiny_classifier, tmp_path / "saved")
    assert "attn" not in (tmp_path / "saved" / "config.json").read_text()
