"""ELECTRA's own: a projection behind the tables, where these have fewer columns than the layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from q8core.model.families import FAMILIES
from q8core.model.head import TaskKind
from tests.model.oracle import inputs, logits_of, ours, small, theirs

ELECTRA = FAMILIES["electra"]


@pytest.mark.parametrize("kind", ["classify", "qa"])
def test_without_a_projection_it_is_bert(kind: TaskKind) -> None:
    sizes: dict[str, Any] = {**small("electra"), "embedding_size": 32}
    model, batch = theirs("electra", kind, **sizes), inputs(60, 2)
    network = ours(model, kind)
    assert network.embedding_projection is None
    with torch.no_grad():
        assert torch.equal(network(**batch), logits_of(model(**batch)))


def test_the_first_hidden_state_is_the_projections_output() -> None:
    model, batch = theirs("electra", "qa", **small("electra")), inputs(60, 2)
    network = ours(model, "qa")
    found: list[Tensor] = []
    for path in network.hidden_state_paths:
        network.get_submodule(path).register_forward_hook(lambda _module, _args, output: found.append(output))
    with torch.no_grad():
        network(**batch)
        expected = model(**batch, output_hidden_states=True).hidden_states
    assert len(found) == len(expected)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_the_smallest_config_is_electra_small() -> None:
    spec = ELECTRA.spec(ELECTRA.defaults)
    assert (spec.embedding, spec.hidden, spec.head_size, spec.table_columns) == (128, 256, 64, 128)
