"""A network's weights: copied from tensors by the names of sites, or drawn for a new head."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from q8core.errors import CheckpointError
from q8core.model.dropout import DropoutRates
from q8core.model.head import HeadSpec
from q8core.model.network import Network
from q8core.model.sites import HEAD_DENSE, HEAD_OUTPUT, float_shapes
from q8core.model.spec import EncoderSpec


def load_network(
    spec: EncoderSpec,
    head: HeadSpec | None,
    tensors: Mapping[str, Tensor],
    dropout: DropoutRates | None = None,
    *,
    new_head_std: float | None = None,
) -> Network:
    """Return a network in float32 with copies of `tensors`; random numbers are drawn only for a new head.

    Args:
        spec: the encoder.
        head: the head; None to return hidden states.
        tensors: tensors by the names of `float_shapes(spec, head)`.
        dropout: the dropout rates; None for no dropout.
        new_head_std: standard deviation of missing weights of the head (see `initialize_head`); None to refuse that.

    Raises:
        CheckpointError: if a tensor is missing, unknown or has another shape.
    """
    shapes = float_shapes(spec, head)
    missing = [name for name in shapes if name not in tensors]
    refused = missing if new_head_std is None else [name for name in missing if not name.startswith("head.")]
    unknown = [name for name in tensors if name not in shapes]
    if refused or unknown:
        raise CheckpointError(f"the network has no {unknown[0]}" if unknown else f"{refused[0]} is missing")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[name]:
            raise CheckpointError(f"{name} must be {shapes[name]}, not {tuple(tensor.shape)}")
    with torch.device("meta"):  # torch's own initial values would cost time and random numbers
        network = Network(spec, head, dropout or DropoutRates())
    network.to_empty(device="cpu")
    network.load_state_dict(tensors, strict=False)
    if new_head_std is not None:
        initialize_head(network, new_head_std, missing)
    return network


def initialize_head(network: Network, std: float, missing: Collection[str] | None = None) -> None:
    """Draw a head's weights from a normal distribution and set its biases to 0, as Devlin et al. (2018).

    After `torch.manual_seed` the weights equal those of a new head in transformers, as they are drawn in the same
    order.

    Args:
        network: the network, changed in place.
        std: the standard deviation (`initializer_range` in config.json).
        missing: the names of the tensors to set; None for all of the head.
    """
    head = network.head
    if head is None:
        return
    for path, linear in ((HEAD_DENSE, head.dense), (HEAD_OUTPUT, head.output)):
        if linear is not None and (missing is None or f"{path}.weight" in missing):
            nn.init.normal_(linear.weight, std=std)
        if linear is not None and (missing is None or f"{path}.bias" in missing):
            nn.init.zeros_(linear.bias)
