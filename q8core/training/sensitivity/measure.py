"""Measures a fine-tuned float model on labelled examples: traces of all matrices, top eigenvalues of all layers."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.random import Generator, default_rng
from torch import Tensor

from q8core.errors import TrainingError
from q8core.model.network import Network
from q8core.model.sites import LAYER_LINEARS, layer_path
from q8core.model.spec import EncoderSpec
from q8core.tasks.digest import examples_digest
from q8core.tasks.task import Feature, Task
from q8core.training.batches import collate
from q8core.training.distillation import logits_loss
from q8core.training.identity import weights_digest
from q8core.training.losses import network_inputs, task_loss
from q8core.training.model import check_trainable, find_source, load_for_task
from q8core.training.processes import current_processes
from q8core.training.progress_bar import progress_bar
from q8core.training.sample import sample
from q8core.training.sensitivity.hessian import top_eigenvalues, trace_sample
from q8core.training.sensitivity.record import Measured, load_measured

BATCH_ROWS, BATCH_TOKENS = 8, 2048
"""Most rows, and tokens with padding, of a batch: the graph of a gradient takes much memory."""
SUBSET = 32
"""Examples of a random subset, on which an eigenvalue is computed."""


LossName = Literal["answers", "labels"]


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        examples: training examples.
        loss: "answers", the divergence from the model's own answers; "labels", the task's loss, as Q-BERT has it.
        seed: which ones, and all random vectors.
        probes: most probes of a batch for the traces, on average over the batches; at least 4.
        tolerance: relative standard error of the largest trace at which probing ends.
        subsets: random subsets for the eigenvalues; 0 for no eigenvalues.
    """

    examples: int = 128
    loss: LossName = "answers"
    seed: int = 42
    probes: int = 30
    tolerance: float = 0.1
    subsets: int = 3


def encoder_matrices(spec: EncoderSpec) -> list[str]:
    """Return the paths of the linears of all layers, layer by layer."""
    return [layer_path(layer, slot) for layer in range(spec.layers) for slot in LAYER_LINEARS]


def measure(source: str, task: Task, effort: Effort, file: Path) -> tuple[Network, Measured]:
    """Return the float network and what was measured of it; an interrupted measurement goes on.

    Args:
        source: a fine-tuned float model, a folder or hub id.
        task: the task that it was fine-tuned for, with training examples.
        effort: how much to measure.
        file: where samples are kept: written after each, and not measured again.

    Raises:
        CheckpointError: the model has no head for the task, or the file is damaged.
        InputError: the model has other labels, or the file was measured with other settings.
        TrainingError: the loss or its derivatives are infinite or NaN.
    """
    found = find_source(source)
    found.require_head(task.kind)
    check_trainable(found, task.kind)
    network = load_for_task(source, task).network
    chosen = sample(task, effort.examples, effort.seed)
    identity: dict[str, Any] = {
        "model": Path(source).name,
        "model_sha256": weights_digest(source),
        "examples": len(chosen.train_examples),
        "examples_sha256": examples_digest(chosen.train_examples),
        "max_length": task.max_length,
        "loss": effort.loss,
        "seed": effort.seed,
    }
    curvature = _Curvature(network, chosen, effort)
    measured = load_measured(file, identity)
    if measured is None:
        measured = Measured.empty(identity, encoder_matrices(network.spec), _by_loss(curvature))
    _measure_traces(curvature, measured, file)
    _measure_eigenvalues(curvature, measured, file)
    return network.cpu(), measured


class _Curvature:
    """The loss of a network on batches of examples, as a function of the matrices of its encoder alone."""

    def __init__(self, network: Network, task: Task, effort: Effort) -> None:
        self.device = current_processes().device
        self.network = network.to(self.device).eval().requires_grad_(False)
        self.task, self.effort = task, effort
        self.features = task.train_features()
        paths = encoder_matrices(network.spec)
        self.weights = [network.get_parameter(f"{path}.weight").requires_grad_() for path in paths]

    @property
    def layers(self) -> list[list[Tensor]]:
        """The matrices, layer by layer."""
        count = len(LAYER_LINEARS)
        return [self.weights[start : start + count] for start in range(0, len(self.weights), count)]

    def loss(self, indices: Sequence[int]) -> Tensor:
        """Return the mean loss of some examples, a scalar with its graph.

        A model's divergence from its own answers is 0, and so is its gradient; what is left of the Hessian is
        Gauss-Newton's, which has no negative eigenvalues, depends on no label, and takes fewer probes. It is what a
        model loses that is its own teacher, as in the recipes.
        """
        batch = self._batch(indices)
        if self.effort.loss == "labels":
            return task_loss(self.network, batch)
        logits = self.network(**network_inputs(batch))
        return logits_loss(logits, logits.detach(), batch["attention_mask"], 1.0)

    def label_loss(self, index: int) -> float:
        """Return the task's own loss of an example."""
        with torch.no_grad():
            return float(task_loss(self.network, self._batch([index])))

    def _batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        rows = [self.features[i] for i in indices]
        batch = collate(rows, self.task.kind, pad_token=self.network.spec.pad_token)
        return {name: value.to(self.device) for name, value in batch.items()}

    def generator(self, what: str, number: int) -> Generator:
        """Return random numbers of their own for each sample, whatever was measured before."""
        return default_rng(random.Random(f"{self.effort.seed}/{what}/{number}").getrandbits(63))


def _by_loss(curvature: _Curvature) -> list[list[int]]:
    """Return batches of examples of about the same loss, the largest first.

    The few examples that the model is not sure of have nearly all of the curvature, and of its noise: in batches of
    their own they are probed more often than the others.
    """
    losses = [curvature.label_loss(index) for index in range(len(curvature.features))]
    return _batches(curvature.features, sorted(range(len(losses)), key=lambda index: -losses[index]))


def _batches(features: Sequence[Feature], order: Sequence[int]) -> list[list[int]]:
    """Return the indices in batches that follow their order."""
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        longest = max(longest, len(features[index]))
        if batches and len(batches[-1]) < BATCH_ROWS and (len(batches[-1]) + 1) * longest <= BATCH_TOKENS:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = len(features[index])
    return batches


def _measure_traces(curvature: _Curvature, measured: Measured, file: Path) -> None:
    effort, count = curvature.effort, len(measured.batches)
    most = max(effort.probes * count, measured.probes)
    with progress_bar("traces", most, "probe", initial=measured.probes) as bar:
        while measured.probes < most:
            if measured.probes % count == 0:
                bar.set_postfix(error=f"{measured.relative_error:.0%}")
                if measured.relative_error <= effort.tolerance:
                    break
            started = time.monotonic()
            batch = measured.next_batch()
            generator = curvature.generator(f"trace/{batch}", len(measured.samples[batch]))
            values = trace_sample(curvature.loss(measured.batches[batch]), curvature.weights, generator)
            measured.samples[batch].append(_finite(values))
            measured.seconds += time.monotonic() - started
            measured.save(file)
            bar.update(1)


def _measure_eigenvalues(curvature: _Curvature, measured: Measured, file: Path) -> None:
    layers, done = curvature.layers, len(measured.eigenvalues)
    subsets = max(curvature.effort.subsets, done)
    with progress_bar("eigenvalues", subsets * len(layers), "layer", initial=done * len(layers)) as bar:
        for number in range(done, subsets):
            started = time.monotonic()
            batches = _subset(curvature, number)

            def losses(batches: list[list[int]] = batches) -> Iterator[tuple[Tensor, float]]:
                rows = sum(map(len, batches))
                return ((curvature.loss(batch), len(batch) / rows) for batch in batches)

            values = top_eigenvalues(losses, layers, curvature.generator("eigenvalue", number), lambda: bar.update(1))
            measured.eigenvalues.append(_finite(values))
            measured.seconds += time.monotonic() - started
            measured.save(file)


def _subset(curvature: _Curvature, number: int) -> list[list[int]]:
    """Return random examples, in batches of about the same length."""
    features = curvature.features
    random_numbers = random.Random(f"{curvature.effort.seed}/subset/{number}")
    drawn = random_numbers.sample(range(len(features)), min(SUBSET, len(features)))
    return _batches(features, sorted(drawn, key=lambda index: len(features[index])))


def _finite(values: list[float]) -> list[float]:
    if not all(map(math.isfinite, values)):
        raise TrainingError("the loss or its second derivatives are infinite or NaN: are the model's weights whole?")
    return values
