"""Tiny networks with the weights of a real BERT, plans for them, and real batches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

from q8core.model.head import HeadSpec
from q8core.model.network import Network
from q8core.model.sites import Site, SiteKind
from q8core.quant import Plan, Scheme, SiteScheme
from q8core.quant.plan import SitePlan
from q8core.quant.qat.prepare import prepare
from tests.models import network_of

Batch = dict[str, Tensor]


def tiny_config(**changes: object) -> BertConfig:
    values: dict[str, object] = {
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "num_labels": 3,
        "initializer_range": 0.2,  # large enough for logits that differ between inputs
        **changes,
    }
    return BertConfig(**values)


def stock_classifier(seed: int = 0, **changes: object) -> BertForSequenceClassification:
    """Hugging Face's own model, whose weights `make_classifier` has."""
    torch.manual_seed(seed)
    model = BertForSequenceClassification(tiny_config(**changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # Hugging Face starts all biases at 0: no test of their grid
                parameter.uniform_(-0.5, 0.5)
    return model.eval()


def stock_qa(seed: int = 0) -> BertForQuestionAnswering:
    torch.manual_seed(seed)
    return BertForQuestionAnswering(tiny_config(num_labels=2)).eval()


def make_classifier(seed: int = 0, dropout: float = 0.1, **changes: object) -> Network:
    return network_of(stock_classifier(seed, **changes), dropout)


def make_qa(seed: int = 0, dropout: float = 0.1) -> Network:
    return network_of(stock_qa(seed), dropout)


def plan_for(network: Network, scheme: Scheme | None) -> Plan:
    head = network.head
    assert head is not None
    dense = None if head.dense is None else "tanh"
    return Plan.of(network.spec, HeadSpec(head.reads, head.output.out_features, dense), scheme)


def prepared(network: Network, scheme: Scheme) -> Network:
    return prepare(network, plan_for(network, scheme))


def site_plan(path: str, module: nn.Linear | nn.Embedding, scheme: SiteScheme) -> SitePlan:
    """The plan of one linear or table that belongs to no network."""
    kind: SiteKind = "linear" if isinstance(module, nn.Linear) else "table"
    return SitePlan(Site(path, path, kind, tuple(module.weight.shape)), scheme)


def hidden_states(network: nn.Module, path: str, batch: Batch) -> Tensor:
    """What the module at `path` gives for a batch."""
    found: list[Tensor] = []
    hook = network.get_submodule(path).register_forward_hook(lambda _module, _args, output: found.append(output))
    try:
        network(**batch)
    finally:
        hook.remove()
    return found[0]


def make_batch(seed: int = 0, rows: int = 6, length: int = 16) -> Batch:
    """Return a padded batch: row i has `length - i` tokens."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(1, 100, (rows, length), generator=generator)
    lengths = torch.tensor([max(length - row, 2) for row in range(rows)])
    attention_mask = (torch.arange(length) < lengths.unsqueeze(1)).long()
    token_type_ids = (torch.arange(length) >= length // 2).long().expand(rows, -1).contiguous()
    return {
        "input_ids": input_ids * attention_mask,
        "attention_mask": attention_mask,
        "token_type_ids": token_type_ids * attention_mask,
    }


@pytest.fixture
def classifier() -> Network:
    return make_classifier()


@pytest.fixture
def batch() -> Batch:
    return make_batch()


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Callable[[object, str], list[tuple[Tensor, ...]]]:
    """Return a function that records the positional tensors of each call of `owner.name`, calls going through."""

    def install(owner: object, name: str) -> list[tuple[Tensor, ...]]:
        calls: list[tuple[Tensor, ...]] = []
        original = getattr(owner, name)

        def record(*args: Tensor, **kwargs: object) -> object:
            calls.append(args)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, record)
        return calls

    return install
