"""Small random models of transformers and the same ones as our network: what the tests of all families compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
)

from q8core.model.families import FAMILIES
from q8core.model.head import TaskKind
from q8core.model.network import Network
from q8core.model.sites import float_shapes
from q8core.model.weights import load_network
from tests.model.eager_attention import ATTENTION

LABELS = 3
BATCH, LENGTH = 3, 13
SEEN = (13, 7, 4)
"""Tokens of each row of a padded batch."""
AUTO: dict[TaskKind, Any] = {
    "classify": AutoModelForSequenceClassification,
    "qa": AutoModelForQuestionAnswering,
}


def configured(model_type: str, kind: TaskKind, dropout: float = 0.0, **values: Any) -> Any:
    """Return transformers' config for a task's head, with one dropout wherever it names a rate."""
    config = CONFIG_MAPPING[model_type](num_labels=LABELS if kind == "classify" else 2, **values)
    for name, value in config.to_dict().items():
        if "dropout" in name and value is not None:
            setattr(config, name, dropout)
    return config


def theirs(model_type: str, kind: TaskKind, attention: str = ATTENTION, **sizes: Any) -> Any:
    """Return transformers' model in evaluation mode, with random biases and norms: its own are 0 and 1."""
    config = configured(model_type, kind, **sizes)
    torch.manual_seed(0)
    model = AUTO[kind].from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5) if name.endswith("weight") else parameter.uniform_(-0.3, 0.3)
            else:
                parameter.mul_(5)  # logits that differ between inputs
    return model.eval()


def names(model: Any, kind: TaskKind | None) -> dict[str, str]:
    """Return the name of each of our tensors in transformers' model."""
    family = FAMILIES[model.config.model_type]
    spec = family.spec(model.config.to_dict())
    modules = family.site_modules(spec, kind)
    shapes = float_shapes(spec, family.head(kind, LABELS) if kind else None)
    return {name: f"{modules[path]}.{leaf}" for name in shapes for path, _, leaf in [name.rpartition(".")]}


def ours(model: Any, kind: TaskKind, dropout: float = 0.0) -> Network:
    """Return our network of transformers' weights, in evaluation mode."""
    family = FAMILIES[model.config.model_type]
    spec, head = family.spec(model.config.to_dict()), family.head(kind, LABELS)
    state = model.state_dict()
    tensors = {name: state[theirs] for name, theirs in names(model, kind).items()}
    return load_network(spec, head, tensors, family.dropout_rates(kind, dropout)).eval()


def inputs(vocabulary: int, types: int, pad: int = 0, padded: bool = True) -> dict[str, Tensor]:
    """Return a batch, for a family with token types with pairs."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, vocabulary, (BATCH, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    if padded:
        for row, seen in enumerate(SEEN):
            ids[row, seen:] = pad
            mask[row, seen:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    if types:
        batch["token_type_ids"] = torch.randint(types, ids.shape, generator=generator) * mask
    return batch


def logits_of(output: Any) -> Tensor:
    """Return the logits as our network gives them, of its output or transformers'."""
    if isinstance(output, Tensor):
        return output
    return torch.stack((output.start_logits, output.end_logits), -1) if "start_logits" in output else output.logits


def loss_of(logits: Tensor, kind: TaskKind) -> Tensor:
    """Return a loss of (batch, outputs) or (batch, sequence, 2), on every output."""
    flat = logits.float() if kind == "classify" else logits.float().transpose(1, 2).flatten(0, 1)
    return nn.functional.cross_entropy(flat, torch.arange(len(flat)) % flat.shape[-1])


def gradients(module: nn.Module) -> Mapping[str, Tensor | None]:
    """Return the gradient of every parameter by name."""
    return {name: parameter.grad for name, parameter in module.named_parameters()}


SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,  # of 16 columns: 1 / sqrt(16) is exact, however a family scales its scores
    "intermediate_size": 48,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 48,
    "embedding_size": 16,
}


def small(model_type: str) -> dict[str, int]:
    """Return values for the sizes that a family's config.json names."""
    return {name: SMALL[name] for name in FAMILIES[model_type].sizes}
