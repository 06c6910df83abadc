"""RoBERTa's own: where positions begin, and a single token type."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from q8core.errors import CheckpointError
from q8core.model.families import FAMILIES
from tests.model.oracle import inputs, logits_of, ours, small, theirs

ROBERTA = FAMILIES["roberta"]


def test_the_first_position_is_behind_the_row_of_padding() -> None:
    spec = ROBERTA.spec({**ROBERTA.defaults, "max_position_embeddings": 514})
    assert (spec.first_position, spec.positions) == (2, 512)
    spec = ROBERTA.spec({**ROBERTA.defaults, "max_position_embeddings": 514, "pad_token_id": 5})
    assert (spec.first_position, spec.positions, spec.pad_token) == (6, 508, 5)


@pytest.mark.parametrize("pad", [0, 1, 2])
def test_one_token_type_and_any_id_for_padding(pad: int) -> None:
    sizes: dict[str, Any] = {**small("roberta"), "type_vocab_size": 1, "pad_token_id": pad}
    model = theirs("roberta", "classify", **sizes)
    batch = inputs(60, 1, pad=pad)
    with torch.no_grad():
        expected = logits_of(model(**batch))
        assert torch.equal(ours(model, "classify")(**batch), expected)
        del batch["token_type_ids"]
        assert torch.equal(ours(model, "classify")(**batch), expected)


def test_the_longest_sequence_is_that_of_transformers() -> None:
    model = theirs("roberta", "qa", **small("roberta"))
    network = ours(model, "qa")
    ids = torch.full((1, network.spec.positions), 7)
    with torch.no_grad():
        assert torch.equal(network(ids), logits_of(model(ids)))
    with pytest.raises(RuntimeError, match="out of bounds"):
        model(torch.full((1, network.spec.positions + 1), 7))


@pytest.mark.parametrize("pad", [None, -1, 19])
def test_a_pad_token_that_leaves_no_position_is_refused(pad: object) -> None:
    with pytest.raises(CheckpointError, match=f"pad_token_id must be from 0 to 18.* found {pad!r}"):
        ROBERTA.spec({**ROBERTA.defaults, "max_position_embeddings": 20, "pad_token_id": pad})


def test_relative_positions_are_refused_by_data() -> None:
    assert ROBERTA.fixed["position_embedding_type"] == "absolute"
