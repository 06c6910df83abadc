"""Attention heads that together have fewer or more columns than the hidden state, in every engine."""

from __future__ import annotations

import pytest

from tests.engines.agreement import assert_engines_agree, spec_of
from tests.engines.random_parts import KINDS, Head

# Together 48 columns of 128, 26 of 52 (not a multiple of 16), and 96 of 40, so that the context is the widest.
SIZES = [(128, 3, 256, 16), (52, 2, 100, 13), (40, 3, 72, 32)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_heads_of_any_size(kind: str, size: tuple[int, int, int, int]) -> None:
    hidden, heads, inner, columns = size
    assert_engines_agree(kind, spec_of(hidden, heads, inner, own_head_size=columns), Head("first", "tanh"), (5, 33, 17))


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_every_token_read_and_biases_by_distance(kind: str) -> None:
    spec = spec_of(40, 3, 72, own_head_size=32, relative_buckets=32)
    assert_engines_agree(kind, spec, Head("every", None), (5, 33, 17))
