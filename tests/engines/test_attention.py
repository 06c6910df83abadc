"""Quantized attention products over packed sequences, against int64 sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from q8core.engines import TokenBatch
from q8core.engines.layers import attention
from q8core.engines.layers.attention import QuantizedProducts, packed_attention

HEADS, SIZE, FACTOR, SCALE = 3, 8, 0.0011, 0.013
LENGTHS = (5, 12, 12, 12, 1, 30)
PRODUCTS = QuantizedProducts(FACTOR, torch.tensor([SCALE]))


def packed(lengths: tuple[int, ...]) -> tuple[TokenBatch, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (sum(lengths), HEADS * SIZE)
    q, k, v = (torch.randint(-127, 128, shape, generator=generator).float() for _ in range(3))
    ids = np.zeros(sum(lengths), np.int64)
    return TokenBatch(ids, ids, lengths), q, k, v


def reference(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the context by int64 sums, and where no probability is near a tie."""
    context, clear, start = torch.zeros_like(q), torch.zeros_like(q, dtype=torch.bool), 0
    for length in lengths:
        for head in range(HEADS):
            part = np.s_[start : start + length, head * SIZE : (head + 1) * SIZE]
            own_q, own_k, own_v = (x.numpy()[part].astype(np.int64) for x in (q, k, v))
            scores = own_q @ own_k.T
            wanted = 255 * np.exp((scores - scores.max(1, keepdims=True)) * np.float64(np.float32(FACTOR)))
            p = np.rint(wanted).astype(np.int64)
            sums = p.sum(1, keepdims=True).astype(np.float32)
            context[part] = torch.from_numpy((p @ own_v).astype(np.float32) * (np.float32(SCALE) / sums))
            clear[part] = torch.from_numpy((np.abs(np.abs(wanted - p) - 0.5) > 1e-3).all(1, keepdims=True))
        start += length
    return context, clear


@pytest.mark.parametrize("lengths", [LENGTHS, (1,), (530, 3)])
def test_each_sequence_equals_int64_bit_for_bit(lengths: tuple[int, ...]) -> None:
    batch, q, k, v = packed(lengths)
    expected, clear = reference(q, k, v, lengths)
    found = packed_attention(q, k, v, batch.runs(), HEADS, PRODUCTS)
    assert float(clear.float().mean()) > 0.5
    assert torch.equal(found[clear], expected[clear])


def test_the_first_tokens_alone_ask_the_same() -> None:
    batch, q, k, v = packed(LENGTHS)
    first = batch.first_rows()
    found = packed_attention(q[first], k, v, batch.runs(), HEADS, PRODUCTS, first_only=True)
    assert torch.equal(found, packed_attention(q, k, v, batch.runs(), HEADS, PRODUCTS)[first])


@pytest.mark.parametrize("scores", [1, HEADS * 12 * 12 * 2])
def test_working_in_groups_changes_no_bit(scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, q, k, v = packed(LENGTHS)
    expected = packed_attention(q, k, v, batch.runs(), HEADS, PRODUCTS)
    monkeypatch.setattr(attention, "_SCORES", scores)
    assert torch.equal(packed_attention(q, k, v, batch.runs(), HEADS, PRODUCTS), expected)
