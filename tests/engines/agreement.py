"""Every engine against the reference, on one model given as plain parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from q8core.engines import TokenBatch
from q8core.engines.loaders.native_float import float_variants
from q8core.model import EncoderSpec
from q8core.native import variants
from tests.engines.built import native_logits, random_batch, torch_logits
from tests.engines.conftest import TORCH_KERNELS
from tests.engines.family_reference import batch_logits
from tests.engines.random_parts import DYNAMIC_LAYERS, Head, Parts, random_parts

# Head sizes of 64, 13 and 20 columns.
SIZES = [(128, 2, 256), (52, 4, 100), (40, 2, 72)]
LENGTHS = (5, 33, 1, 17, 16, 40)
"""The last one takes every position."""


def spec_of(hidden: int, heads: int, inner: int, **others: int) -> EncoderSpec:
    sizes = {"layers": 2, "vocabulary": 50, "positions": max(LENGTHS), "token_types": 2, **others}
    return EncoderSpec(hidden=hidden, heads=heads, inner=inner, norm_epsilon=1e-12, **sizes)


def assert_engines_agree(kind: str, spec: EncoderSpec, head: Head, lengths: tuple[int, ...] = LENGTHS) -> None:
    """Native on every variant, with equal bits, and torch's kernels give what the reference gives."""
    parts = random_parts(spec, head, kind)
    batch = random_batch(lengths, spec.vocabulary, spec.token_types)
    expected = batch_logits(parts, batch)
    first, *others = (native_logits(parts, batch, v) for v in (float_variants() if kind == "float" else variants()))
    for other in others:
        assert torch.equal(other, first)
    assert_near(first, expected, kind)
    for kernel in ("float",) if kind == "float" else TORCH_KERNELS:
        assert_near(torch_logits(parts, batch, kernel), expected, kind)


def assert_near(found: Tensor, expected: Sequence[Tensor], kind: str) -> None:
    """Within float32's rounding; of integers, one sequence may have one at a tie that fell to the other side.

    That moves its logits by up to some hundredths, and in no other sequence anything. With scales that are themselves
    computed, and rounded, two sequences may.
    """
    assert found.shape == torch.cat(list(expected)).shape
    pieces = found.double().split([len(each) for each in expected])
    differences = sorted(float((a - b).abs().max()) for a, b in zip(pieces, expected, strict=True))
    at_ties = 2 if kind in DYNAMIC_LAYERS else int(kind != "float")
    assert max(differences[: len(differences) - at_ties], default=0) <= 1e-5
    assert differences[-1] <= 0.1


def assert_part_matters(parts: Parts, without: Parts, batch: TokenBatch) -> None:
    """The reference itself gives something else where a part is left out."""
    pairs = zip(batch_logits(parts, batch), batch_logits(without, batch), strict=True)
    assert max(float((a - b).abs().max()) for a, b in pairs) > 0.1
