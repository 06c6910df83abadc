"""A tiny real BERT and real batches for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

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


def make_classifier(seed: int = 0, **changes: object) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    model = BertForSequenceClassification(tiny_config(**changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # Hugging Face starts all biases at 0: no test of their grid
                parameter.uniform_(-0.5, 0.5)
    return model.eval()


def make_qa(seed: int = 0) -> BertForQuestionAnswering:
    torch.manual_seed(seed)
    return BertForQuestionAnswering(tiny_config(num_labels=2)).eval()


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
def classifier() -> BertForSequenceClassification:
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
