"""Cuts a fine-tuned model to a share of its width: the most important attention heads and feed-forward neurons stay.

The importance of a head or neuron is how much the loss would change, to first order, if its output were left out: the
derivative of the loss by a factor of 1 on that output, its absolute value summed over batches (Michel et al., 2019;
DynaBERT, Hou et al., 2020). Hidden states keep their columns, so heads together have fewer than these.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from q8core.errors import TrainingError
from q8core.model.network import Network
from q8core.model.sites import PROJECTIONS, RELATIVE_BIAS, layer_path
from q8core.model.spec import EncoderSpec
from q8core.model.weights import load_network
from q8core.tasks.task import Task
from q8core.training.batches import CALIBRATION_BATCH, collate
from q8core.training.config import TrainConfig
from q8core.training.losses import task_loss
from q8core.training.model import TaskModel, check_trainable, find_source, load_for_task
from q8core.training.sample import sample

EXAMPLES = 512
"""Training examples on which importance is measured."""

Batches = Iterable[Mapping[str, Tensor]]


@dataclass(frozen=True)
class Importance:
    """How important each head and neuron of each layer is: float64 (layers, heads) and (layers, inner)."""

    heads: Tensor
    neurons: Tensor


def load_to_train(source: str, task: Task, config: TrainConfig) -> TaskModel:
    """Load a model for a task, and cut it to the width that the hyperparameters say.

    Raises:
        CheckpointError: the source is no float model, or has no trained head for the task, by which parts are chosen.
        InputError: the source does not exist, or does not fit the task.
        TrainingError: as for `cut_to_width`.
    """
    found = find_source(source)
    check_trainable(found, task.kind)
    model = load_for_task(source, task, config.dropout)
    if config.width == 1:
        return model
    found.require_head(task.kind)
    return cut_to_width(model, task, config.width, dropout=config.dropout, seed=config.seed)


def cut_to_width(model: TaskModel, task: Task, share: float, *, dropout: float, seed: int) -> TaskModel:
    """Return a fine-tuned model with this share of its heads and neurons; the same model if that is all of them.

    Args:
        model: a float model with a trained head for the task.
        task: the task, with training examples, of which importance is measured on some.
        share: of heads and neurons, above 0 and at most 1.
        dropout: the rate at all dropout points of the result.
        seed: which examples.

    Raises:
        InputError: there is no training data.
        TrainingError: a derivative is infinite or NaN.
    """
    config = model.config.narrower(share)
    if config is model.config:
        return model
    features = sample(task, EXAMPLES, seed).train_features()
    pad = model.config.spec.pad_token
    starts = range(0, len(features), CALIBRATION_BATCH)
    batches = (collate(features[at : at + CALIBRATION_BATCH], model.kind, pad_token=pad) for at in starts)
    tensors = cut(model.network, importance(model.network, batches), config.spec)
    rates = config.family.dropout_rates(model.kind, dropout)
    return TaskModel(load_network(config.spec, config.head(model.kind), tensors, rates), config, model.kind)


def importance(network: Network, batches: Batches) -> Importance:
    """Measure the importance of all heads and neurons on batches with targets (see `collate`).

    Raises:
        TrainingError: a derivative is infinite or NaN.
    """
    spec, training = network.spec, network.training
    heads, neurons = (torch.zeros(spec.layers, count, dtype=torch.float64) for count in (spec.heads, spec.inner))
    network.eval()
    try:
        for batch in batches:
            with _inputs(network) as found:
                loss = task_loss(network, batch)
            gradients = torch.autograd.grad(loss, list(found.values()))
            for (path, x), gradient in zip(found.items(), gradients, strict=True):
                layer = int(path.split(".")[1])
                by_column = (x.detach() * gradient).double().flatten(0, -2).sum(dim=0)
                if path.endswith("ffn_out"):
                    neurons[layer] += by_column.abs()
                else:
                    heads[layer] += by_column.reshape(spec.heads, -1).sum(dim=1).abs()
    finally:
        network.train(training)
    if not bool(torch.isfinite(heads).all() and torch.isfinite(neurons).all()):
        raise TrainingError("the derivatives of the loss are infinite or NaN, so no head is more important than others")
    return Importance(heads, neurons)


def cut(network: Network, found: Importance, spec: EncoderSpec) -> dict[str, Tensor]:
    """Return the tensors of a network of this spec: the most important heads and neurons, in their order.

    Heads that share biases by relative position must be the same in all layers: their importance is summed.
    """
    tensors = {name: parameter.detach() for name, parameter in network.named_parameters()}
    of_heads = found.heads
    if spec.relative_buckets:
        of_heads = of_heads.sum(dim=0).expand_as(of_heads)
        shared = _kept(of_heads[0], spec.heads)
        tensors[f"{RELATIVE_BIAS}.weight"] = tensors[f"{RELATIVE_BIAS}.weight"][:, shared]
    for layer in range(spec.layers):
        heads, neurons = _kept(of_heads[layer], spec.heads), _kept(found.neurons[layer], spec.inner)
        columns = (heads[:, None] * spec.head_size + torch.arange(spec.head_size)).reshape(-1)
        _take_rows(tensors, [layer_path(layer, slot) for slot in PROJECTIONS], columns)
        _take_rows(tensors, [layer_path(layer, "ffn_in")], neurons)
        for slot, kept in (("attention_output", columns), ("ffn_out", neurons)):
            name = f"{layer_path(layer, slot)}.weight"
            tensors[name] = tensors[name][:, kept]
    return tensors


def _kept(importance_of: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` largest values, ascending; of equal ones the first."""
    return importance_of.argsort(descending=True, stable=True)[:count].sort().values


def _take_rows(tensors: dict[str, Tensor], paths: Sequence[str], rows: Tensor) -> None:
    for path in paths:
        for leaf in ("weight", "bias"):
            tensors[f"{path}.{leaf}"] = tensors[f"{path}.{leaf}"][rows]


@contextmanager
def _inputs(network: Network) -> Generator[dict[str, Tensor]]:
    """Collect the inputs of the linears that read all heads or all neurons of a layer."""
    found: dict[str, Tensor] = {}

    def keeper(path: str) -> Any:
        def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            found[path] = args[0]

        return keep

    paths = [
        layer_path(layer, slot) for layer in range(network.spec.layers) for slot in ("attention_output", "ffn_out")
    ]
    handles = [network.get_submodule(path).register_forward_pre_hook(keeper(path)) for path in paths]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
