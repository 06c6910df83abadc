"""A bias for each head and distance of two tokens, in the attention of every engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from q8core.engines.layers.attention import FloatProducts, QuantizedProducts, packed_attention
from q8core.engines.loaders.native_float import float_variants
from q8core.model import EncoderSpec
from q8core.native import variants
from tests.engines.agreement import SIZES, assert_engines_agree, assert_part_matters, spec_of
from tests.engines.built import native_logits, random_batch
from tests.engines.family_reference import batch_logits
from tests.engines.random_parts import KINDS, Head, Parts, random_parts
from tests.engines.test_attention import FACTOR, HEADS, LENGTHS, SCALE, SIZE, packed

POSITIONS = max(LENGTHS)
TABLE = torch.randn(HEADS, 2 * POSITIONS - 1, generator=torch.Generator().manual_seed(2))


def biased(kind: str, spec: EncoderSpec) -> Parts:
    return random_parts(spec, Head("every", None), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("head", [Head("first", "tanh"), Head("every", None)])
def test_a_relative_bias_is_added_in_every_layer(kind: str, size: Any, head: Head) -> None:
    """Also where only first tokens ask, and where a sequence takes every position: both ends of the table are read."""
    assert_engines_agree(kind, spec_of(*size, relative_buckets=32, token_types=0), head)


@pytest.mark.parametrize("kind", KINDS)
def test_long_sequences_are_attended_to_in_parts(kind: str) -> None:
    """One layer, so that an integer at a tie moves the logits of its own token only."""
    spec = spec_of(*SIZES[0], relative_buckets=32, positions=200, layers=1)
    parts, batch = biased(kind, spec), random_batch((200, 131), 50, 2)
    expected = torch.cat(batch_logits(parts, batch))
    for variant in float_variants() if kind == "float" else variants():
        difference = (native_logits(parts, batch, variant) - expected).abs().amax(1)
        assert float((difference <= 1e-5).float().mean()) >= (1 if kind == "float" else 0.95)
        assert float(difference.max()) <= 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_bias_matters(kind: str) -> None:
    parts = biased(kind, spec_of(*SIZES[1], relative_buckets=32))
    assert_part_matters(parts, replace(parts, relative_bias=None), random_batch((5, 33), 50, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_native_uses_nothing_beyond_the_table(kind: str) -> None:
    parts, batch = biased(kind, spec_of(*SIZES[1], relative_buckets=32)), random_batch((40, 33), 50, 2)
    table, found = parts.relative_bias, []
    assert table is not None
    for behind in (0.0, float("nan")):
        longer = torch.cat([table.flatten(), torch.full((64,), behind)])
        view = replace(parts, relative_bias=longer[: table.numel()].view_as(table))
        found.append(native_logits(view, batch, next(iter(variants()))))
    assert torch.equal(*found)
    assert bool(torch.isfinite(found[0]).all())


def test_quantized_products_equal_int64_but_at_ties() -> None:
    batch, q, k, v = packed(LENGTHS)
    products = QuantizedProducts(FACTOR, torch.tensor([SCALE]), TABLE)
    found = packed_attention(q, k, v, batch.runs(), HEADS, products)
    start = 0
    for length in LENGTHS:
        for head in range(HEADS):
            part = np.s_[start : start + length, head * SIZE : (head + 1) * SIZE]
            own_q, own_k, own_v = (x.numpy()[part].astype(np.int64) for x in (q, k, v))
            x = (own_q @ own_k.T).astype(np.float32) * np.float32(FACTOR)
            for i in range(length):
                x[i] += TABLE[head].numpy()[POSITIONS - 1 - i : POSITIONS - 1 - i + length]
            wanted = 255 * np.exp((x - x.max(1, keepdims=True)).astype(np.float64))
            p = np.rint(wanted).astype(np.int64)
            sums = p.sum(1, keepdims=True).astype(np.float32)
            context = torch.from_numpy((p @ own_v).astype(np.float32) * (np.float32(SCALE) / sums))
            clear = torch.from_numpy((np.abs(np.abs(wanted - p) - 0.5) > 1e-3).all(1))
            assert torch.equal(found[part][clear], context[clear])
        start += length


@pytest.mark.parametrize("products", [FloatProducts(FACTOR, TABLE), QuantizedProducts(FACTOR, torch.ones(1), TABLE)])
def test_the_first_tokens_alone_ask_the_same(products: Any) -> None:
    batch, q, k, v = packed(LENGTHS)
    first = batch.first_rows()
    found = packed_attention(q[first], k, v, batch.runs(), HEADS, products, first_only=True)
    expected = packed_attention(q, k, v, batch.runs(), HEADS, products)[first]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bias_of_zeros_is_none(kind: str) -> None:
    """The same probabilities by the other formula, but for those at ties."""
    parts = biased(kind, spec_of(*SIZES[1], relative_buckets=32))
    assert parts.relative_bias is not None
    batch, variant = random_batch((5, 33, 17), 50, 2), next(iter(variants()))
    zeros = native_logits(replace(parts, relative_bias=torch.zeros_like(parts.relative_bias)), batch, variant)
    none = native_logits(replace(parts, relative_bias=None), batch, variant)
    assert float(((zeros - none).abs().amax(1) <= 1e-5).float().mean()) > 0.5
