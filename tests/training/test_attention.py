"""Training's attention against Hugging Face's own, forward and backward."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import eager_attention_forward

from q8core.training.attention import ATTENTION, attention
from q8core.training.model import load_bert

SHAPE = (3, 7, 2, 5)
"""Batch, sequence, heads, head size."""
SCALING = 0.31


def inputs(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator).to(dtype).transpose(1, 2).requires_grad_() for _ in range(3)]


def mask() -> Tensor:
    """The first sequence sees all, the others not their ends."""
    found = torch.zeros(3, 1, 7, 7)
    found[1, :, :, 4:] = found[2, :, :, 1:] = torch.finfo(torch.float32).min
    return found


def outcome(function: object, dtype: torch.dtype, hidden: Tensor | None) -> list[Tensor]:
    """Context, probabilities and the gradients of query, key and value, of a loss that is no mere sum."""
    tensors = inputs(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        context, probabilities = function(nn.Module(), *tensors, hidden, scaling=SCALING)  # type: ignore[operator]
    weights = torch.randn(context.shape, generator=torch.Generator().manual_seed(1))
    (context.float() * weights).sum().backward()
    return [context, probabilities, *(each.grad for each in tensors if each.grad is not None)]


@pytest.mark.parametrize("hidden", [None, mask()], ids=["all", "padded"])
def test_float32_is_that_of_hugging_face(hidden: Tensor | None) -> None:
    ours, theirs = (outcome(each, torch.float32, hidden) for each in (attention, eager_attention_forward))
    assert len(ours) == len(theirs) == 5
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("hidden", [None, mask()], ids=["all", "padded"])
def test_bfloat16_is_as_near_to_float32_as_that_of_hugging_face(hidden: Tensor | None) -> None:
    exact = outcome(eager_attention_forward, torch.float32, hidden)
    ours, theirs = (outcome(each, torch.bfloat16, hidden) for each in (attention, eager_attention_forward))
    for found, other, expected in zip(ours, theirs, exact, strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.float() - expected).norm() <= 1.5 * (other.float() - expected).norm() + 1e-6


def test_hidden_keys_get_nothing() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        _, probabilities, *_ = outcome(attention, dtype, mask())
        assert torch.all(probabilities[1, :, :, 4:] == 0)
        assert torch.all(probabilities[2, :, :, 0] == 1)


def test_dropout_only_in_training() -> None:
    q, k, v = inputs(torch.float32)
    plain, dropped = (attention(nn.Module().train(mode), q, k, v, None, dropout=0.5)[1] for mode in (False, True))
    assert torch.all(plain > 0)
    assert 0.2 < (dropped == 0).float().mean() < 0.8
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * plain[kept])


def test_training_uses_it_and_files_do_not_name_it(tiny_classifier: Path, tmp_path: Path) -> None:
    model = load_bert(str(tiny_classifier), "classify")
    assert vars(model.config)["_attn_implementation_internal"] == ATTENTION
    model.save_pretrained(tmp_path)
    assert ATTENTION not in (tmp_path / "config.json").read_text()
