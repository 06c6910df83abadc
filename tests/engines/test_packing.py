from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from q8core.engines import TokenBatch
from q8core.errors import InputError

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def batch_of(lengths: list[int]) -> TokenBatch:
    return TokenBatch.pack([(range(length), [0] * length) for length in lengths])


@given(LENGTHS)
def test_positions_runs_and_first_rows_describe_the_same_sequences(lengths: list[int]) -> None:
    batch = batch_of(lengths)
    assert batch.tokens == sum(lengths)
    assert np.array_equal(batch.positions(), batch.input_ids)  # the ids of this batch count up from 0
    assert batch.first_rows().tolist() == [sum(lengths[:place]) for place in range(len(lengths))]
    spread = [(run.first_token + i * run.length, run.first_sequence + i, run.length)
              for run in batch.runs() for i in range(run.sequences)]  # fmt: skip
    assert spread == [(sum(lengths[:place]), place, length) for place, length in enumerate(lengths)]
    neighbours = zip(batch.runs(), batch.runs()[1:], strict=False)
    assert all(left.length != right.length for left, right in neighbours)


@given(LENGTHS)
def test_split_returns_each_sequence_its_rows(lengths: list[int]) -> None:
    batch = batch_of(lengths)
    per_token = np.stack([batch.input_ids, -batch.input_ids], axis=1)
    assert [part[:, 0].tolist() for part in batch.split(per_token, "every")] == [list(range(n)) for n in lengths]
    per_sequence = np.arange(len(lengths))[:, None].repeat(3, axis=1)
    assert [part.tolist() for part in batch.split(per_sequence, "first")] == [[n] * 3 for n in range(len(lengths))]


def test_single_tokens_are_split_as_the_head_reads_them() -> None:
    """One row for each either way: the number of rows does not tell which."""
    batch, logits = batch_of([1, 1]), np.array([[1.0, 2.0], [3.0, 4.0]])
    assert [part.tolist() for part in batch.split(logits, "first")] == [[1, 2], [3, 4]]
    assert [part.tolist() for part in batch.split(logits, "every")] == [[[1, 2]], [[3, 4]]]


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([], "at least one sequence"),
        ([([1], [0]), ([], [])], "sequence 1 of the batch has no tokens"),
        ([([1, 2], [0])], "2 input_ids but 1 token_type_ids"),
    ],
)
def test_what_cannot_be_packed_is_refused(sequences: list[tuple[list[int], list[int]]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TokenBatch.pack(sequences)


def test_parts_that_do_not_fit_together_are_refused() -> None:
    ids = np.zeros(5, np.int64)
    with pytest.raises(InputError, match="sum of the lengths"):
        TokenBatch(ids, ids, (2, 2))
    with pytest.raises(InputError, match=r"int32 of shape \(5,\)"):
        TokenBatch(ids, ids.astype(np.int32), (5,))
    with pytest.raises(InputError, match="7 rows of logits do not fit 2 sequences"):
        batch_of([2, 5]).split(np.zeros((7, 2)), "first")
    with pytest.raises(InputError, match="2 rows of logits do not fit 7 tokens"):
        batch_of([2, 5]).split(np.zeros((2, 2)), "every")
