"""Heads as data: any tokens, with or without a dense layer, any activation, in every engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from q8core.native import variants
from tests.engines.agreement import SIZES, assert_engines_agree, spec_of
from tests.engines.built import native_logits, random_batch
from tests.engines.random_parts import KINDS, Head, random_parts

READS = ("first", "every")
DENSE = (None, "none", "tanh", "relu", "gelu")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("dense", DENSE)
def test_every_head_is_computed_by_every_engine(kind: str, reads: Any, dense: Any) -> None:
    assert_engines_agree(kind, spec_of(*SIZES[1]), Head(reads, dense))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("outputs", [1, 2, 37])
def test_any_number_of_outputs(kind: str, reads: Any, size: Any, outputs: int) -> None:
    assert_engines_agree(kind, spec_of(*size), Head(reads, "tanh", outputs))


@pytest.mark.parametrize("kind", KINDS)
def test_one_layer_is_the_first_and_the_last(kind: str) -> None:
    for reads in READS:
        assert_engines_agree(kind, spec_of(*SIZES[1], layers=1), Head(reads, "relu"))


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("dense", [None, "gelu"])
def test_the_number_of_threads_does_not_matter(kind: str, reads: Any, dense: Any) -> None:
    parts = random_parts(spec_of(*SIZES[0]), Head(reads, dense), kind)
    batch = random_batch((40, 7, 33, 1), 50, 2)
    one, three = (native_logits(parts, batch, next(iter(variants())), threads) for threads in (1, 3))
    assert torch.equal(one, three)
