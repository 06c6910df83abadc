"""Models of transformers in our words: the oracle's own weights in our networks, plans and engines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from q8core.checkpoint.config import ModelConfig, parse_config
from q8core.model.head import TaskKind
from q8core.model.network import Network
from q8core.model.weights import load_network
from q8core.quant import PRESETS, Plan, Scheme, preset

FEW_BITS = ("qbert-4", "qbert-3", "qbert-2", "kdlsq-4", "kdlsq-2", "ternary", "binary", "binary-split", "mkq")
"""The presets with weights of fewer than 8 bits."""
EIGHT_BITS = tuple(name for name, scheme in PRESETS.items() if name not in FEW_BITS and scheme.average_bits is None)


def small(name: str) -> Scheme:
    """A preset for tiny models: with 8 groups of rows where it has 128."""
    scheme = preset(name)
    slots = dict(scheme.slots)
    for slot, site in slots.items():
        if site.weight is not None and site.weight.groups:
            slots[slot] = replace(site, weight=replace(site.weight, groups=8))
    return replace(scheme, slots=slots)


def kind_of(model: Any) -> TaskKind:
    """The task of a model of transformers, by its class."""
    return "qa" if type(model).__name__.endswith("QuestionAnswering") else "classify"


def config_of(model: Any) -> ModelConfig:
    """What the model's config says, as read from its config.json."""
    return parse_config(model.config.to_dict(), "the test's model")


def site_tensors(model: Any) -> dict[str, Tensor]:
    """The model's float tensors by the names of sites, without copies."""
    state: dict[str, Tensor] = model.state_dict()
    return {site: state[name] for site, name in config_of(model).file_names(kind_of(model)).items()}


def plan_of(model: Any, scheme: Scheme | None = None) -> Plan:
    """The plan of the model, in float without a scheme."""
    config = config_of(model)
    return Plan.of(config.spec, config.head(kind_of(model)), scheme)


def network_of(model: Any, dropout: float = 0.0) -> Network:
    """Our network with copies of the model's weights, in evaluation mode as the model's is."""
    config, kind = config_of(model), kind_of(model)
    rates = config.family.dropout_rates(kind, dropout)
    return load_network(config.spec, config.head(kind), site_tensors(model), rates).train(model.training)


def logits_of(output: Any) -> Tensor:
    """The logits of transformers' output: (batch, labels), or (batch, sequence, 2) of start and end."""
    return output.logits if hasattr(output, "logits") else torch.stack([output.start_logits, output.end_logits], dim=-1)
