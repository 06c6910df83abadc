"""Embeddings that differ from BERT's: no token types, and tables of other columns than the hidden state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from q8core.engines import TokenBatch
from q8core.engines.engine import EncoderEngine
from q8core.model import HeadSpec
from tests.engines.agreement import SIZES, assert_engines_agree, assert_part_matters, spec_of
from tests.engines.built import TorchBuilder, random_batch
from tests.engines.random_parts import KINDS, Head, random_parts

EACH_HEAD = pytest.mark.parametrize("head", [Head("first", "tanh"), Head("every", None)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
@EACH_HEAD
def test_without_token_types_nothing_is_added(kind: str, size: Any, head: Head) -> None:
    """The native library gets no pointer to a table, and none to the batch's types."""
    assert_engines_agree(kind, spec_of(*size, token_types=0), head)


def test_token_types_matter_where_there_are_some() -> None:
    parts = random_parts(spec_of(*SIZES[1]), Head(), "float")
    assert_part_matters(parts, replace(parts, types=None), random_batch((5, 9), 50, 2))


def test_a_model_without_token_types_reads_none() -> None:
    """A tokenizer made for BERT gives the second text of a pair type 1."""
    parts = random_parts(spec_of(*SIZES[1], token_types=0), Head(), "float")
    engine = EncoderEngine(HeadSpec("first", 3), "fp32", "onednn", TorchBuilder(parts, "float").model())
    ids = np.array([3, 1])
    found = [engine.infer(TokenBatch(ids, types, (2,))) for types in (np.zeros_like(ids), np.array([0, 1]))]
    assert np.array_equal(*found)


# Fewer columns than the hidden state, also of no whole vector, and more than the inner state has.
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "columns"), [(SIZES[0], 64), (SIZES[1], 24), (SIZES[2], 150), (SIZES[2], 7)])
@EACH_HEAD
def test_tables_of_other_columns_are_projected(kind: str, size: Any, columns: int, head: Head) -> None:
    assert_engines_agree(kind, spec_of(*size, embedding=columns), head)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [(1, 1), (40, 2), (3,) * 40])
def test_any_number_of_tokens_is_projected(kind: str, lengths: tuple[int, ...]) -> None:
    spec = spec_of(*SIZES[0], embedding=64, token_types=0, layers=1)
    assert_engines_agree(kind, spec, Head("every", "gelu"), lengths)
