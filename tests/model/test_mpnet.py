"""MPNet's own: the bias by relative position, and where positions begin."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from q8core.errors import CheckpointError
from q8core.model.families import FAMILIES
from tests.model.oracle import inputs, logits_of, ours, small, theirs

MPNET = FAMILIES["mpnet"]


def test_a_long_sequence_reaches_every_bucket() -> None:
    sizes: dict[str, Any] = {**small("mpnet"), "max_position_embeddings": 302}
    model = theirs("mpnet", "qa", **sizes)
    network = ours(model, "qa")
    ids = torch.randint(3, 60, (1, 300), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(network(ids), logits_of(model(ids)))
        assert network.relative_attention_bias is not None
        for row in range(32):
            before = network(ids)
            network.relative_attention_bias.weight[row] += 3.0
            # bucket 16 is that of distance 0 behind the query, which is distance 0: nobody's
            assert torch.equal(network(ids), before) == (row == 16)


def test_scores_that_are_divided_by_an_inexact_root_differ_by_roundings() -> None:
    sizes: dict[str, Any] = {**small("mpnet"), "num_attention_heads": 4}  # transformers divides by sqrt(8), we multiply
    model, batch = theirs("mpnet", "classify", **sizes), inputs(60, 0, pad=1)
    with torch.no_grad():
        torch.testing.assert_close(ours(model, "classify")(**batch), model(**batch).logits, rtol=1e-5, atol=1e-6)


def test_positions_begin_behind_the_row_of_padding() -> None:
    spec = MPNET.spec({**MPNET.defaults, "max_position_embeddings": 514})
    assert (spec.first_position, spec.positions, spec.pad_token, spec.token_types) == (2, 512, 1, 0)
    with pytest.raises(CheckpointError, match=r"max_position_embeddings must be above 2.*found 2"):
        MPNET.spec({**MPNET.defaults, "max_position_embeddings": 2})


def test_what_transformers_does_not_read_is_refused_by_data() -> None:
    assert MPNET.fixed["relative_attention_num_buckets"] == 32
    assert MPNET.fixed["pad_token_id"] == 1
