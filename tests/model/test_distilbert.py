"""DistilBERT's own: no token types, and names that its config.json alone has."""

from __future__ import annotations

from typing import Any

import torch

from q8core.model.families import FAMILIES
from q8core.model.sites import float_shapes
from tests.model.oracle import inputs, logits_of, ours, small, theirs

DISTILBERT = FAMILIES["distilbert"]


def test_there_are_no_token_types_to_read() -> None:
    model = theirs("distilbert", "qa", **small("distilbert"))
    network, batch = ours(model, "qa"), inputs(60, 0)
    assert not any("token_type" in name for name in float_shapes(network.spec, None))
    with torch.no_grad():
        expected = logits_of(model(**batch))
        types = torch.ones_like(batch["input_ids"])
        assert torch.equal(network(**batch, token_type_ids=types)[0], expected[0])


def test_sinusoidal_positions_are_a_table() -> None:
    sizes: dict[str, Any] = {**small("distilbert"), "sinusoidal_pos_embds": True}
    model, batch = theirs("distilbert", "classify", **sizes), inputs(60, 0)
    with torch.no_grad():
        assert torch.equal(ours(model, "classify")(**batch), logits_of(model(**batch)))


def test_other_activations_are_refused_by_data() -> None:
    assert DISTILBERT.fixed["activation"] == "gelu"
