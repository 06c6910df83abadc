"""The training loop: AdamW, warm-up and decay, evaluation, keeping the best weights, resumable at any moment.

The same loop fine-tunes a float network and trains a fake-quantized one, without knowing which.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from q8core.tasks.task import Feature, Task
from q8core.training.averaging import WeightAverage
from q8core.training.batches import collate, epoch_batches
from q8core.training.config import TrainConfig
from q8core.training.losses import task_loss
from q8core.training.processes import Processes, current_processes
from q8core.training.progress_bar import progress_bar
from q8core.training.state import STATE_FILE, Progress, load_state, save_state
from q8core.training.step import training_step

LOG_FILE = "train_log.jsonl"
BEST_FILE = "best.safetensors"
LOG_EVERY = 50
# A crash loses at most this much work.
SAVE_SECONDS = 180.0

Score = Callable[[nn.Module, int | None], dict[str, float]]
Loss = Callable[[nn.Module, Mapping[str, torch.Tensor]], torch.Tensor]
"""(model, batch from `collate`) -> the scalar to minimise."""


class Interrupted(KeyboardInterrupt):
    """Raised after Ctrl-C or SIGTERM, when the state is on disk."""


@dataclass
class _Meter:
    """Mean loss and token rate since its creation."""

    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, loss: float, tokens: int) -> None:
        self.losses.append(loss)
        self.tokens += tokens

    @property
    def loss(self) -> float:
        return sum(self.losses) / len(self.losses)

    @property
    def rate(self) -> float:
        return self.tokens / (time.monotonic() - self.started)


@dataclass(frozen=True)
class _Steps:
    """How many steps an epoch has, how many the run has, and after how many it is evaluated."""

    per_epoch: int
    total: int
    evals: frozenset[int]

    @classmethod
    def of(cls, config: TrainConfig, examples: int) -> _Steps:
        per_epoch = math.ceil(examples / config.batch_size)
        total = max(1, round(config.epochs * per_epoch))
        if config.max_steps is not None:
            total = min(total, config.max_steps)
        evals = (max(1, round(total * (i + 1) / config.evals)) for i in range(config.evals))
        return cls(per_epoch, total, frozenset(evals))


@dataclass(frozen=True)
class _State:
    """What is saved beside the weights, so that a run can be resumed."""

    optimizer: torch.optim.AdamW
    average: WeightAverage | None
    progress: Progress
    identity: dict[str, Any]


@dataclass(frozen=True)
class ParameterRules:
    """Parameters, by their names in the model, that are trained otherwise than the others.

    Attributes:
        rates: those with a highest learning rate of their own, which also have no decay.
        without_decay: matrices without decay.
    """

    rates: Mapping[str, float] = field(default_factory=dict[str, float])
    without_decay: frozenset[str] = frozenset()


ALL_ALIKE = ParameterRules()


@dataclass
class Trainer:
    """Trains ``model`` on the features of ``task`` and keeps the best weights.

    Args:
        model: a network, float or prepared.
        task: the source of targets and metric.
        score: scores the model on the first n dev examples (None: all).
        config: the hyperparameters.
        output: folder for state and log, and nothing else.
        identity: what else must be equal to resume a run (base model, scheme, data, teacher).
        loss: the loss to minimise; with a teacher a `Distillation`.
        processes: the processes that train together; a step, its batch and its loss are those of all.
        pad_token: the padding id of shorter inputs.
        rules: which parameters are trained otherwise than the others.
    """

    model: nn.Module
    task: Task
    score: Score
    config: TrainConfig
    output: Path
    identity: dict[str, Any] = field(default_factory=dict)
    loss: Loss = task_loss
    processes: Processes = field(default_factory=current_processes)
    pad_token: int | None = 0
    rules: ParameterRules = ALL_ALIKE

    def run(self, features: list[Feature]) -> Progress:
        """Train to the end; afterwards the first process's ``model`` has the best weights, on the CPU.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; calling again with the same arguments resumes.
            InputError: the output folder has a run with other settings.
        """
        self.processes.check_batch(self.config.batch_size)
        self.output.mkdir(parents=True, exist_ok=True)
        lengths = [len(feature) for feature in features]
        steps = _Steps.of(self.config, len(features))
        state = self._start(steps)
        progress = state.progress
        bar = progress_bar("training", steps.total, "step", initial=progress.step, off=not self.processes.is_first)
        with bar, _stop_signals(self.processes.is_first) as stopped:
            started = saved = time.monotonic()
            before = progress.seconds
            meter = _Meter()
            for step in range(progress.step, steps.total):
                batch = self._batch(lengths, step, steps.per_epoch)
                loss = self._step(step, [features[i] for i in batch], state, steps)
                meter.add(loss, sum(lengths[i] for i in batch))
                progress.step = step + 1
                progress.seconds = before + time.monotonic() - started
                bar.update(1)
                if progress.step % LOG_EVERY == 0 or progress.step == steps.total:
                    self._report(bar, progress.step, meter)
                    meter = _Meter()
                if progress.step in steps.evals:
                    self._evaluate(state)
                    meter = _Meter()
                stop = self.processes.any(stopped())
                if stop or time.monotonic() - saved > SAVE_SECONDS or progress.step in steps.evals:
                    self._save(state)
                    saved = time.monotonic()
                if stop:
                    self.processes.wait()  # until the state is written: torchrun stops all when the first one exits
                    raise Interrupted
        self._restore_best()
        return progress

    def discard_state(self) -> None:
        """Remove the files that only an unfinished run needs."""
        discard_state(self.output)

    def _start(self, steps: _Steps) -> _State:
        """Put the model on its device, and go on from the state in the folder where there is one."""
        self.model.to(self.processes.device)
        optimizer = make_optimizer(self.model, self.config, self.rules)
        identity = {**self.config.to_dict(), **self.identity}
        average = WeightAverage(self.model, self.config.average * steps.total) if self.config.average else None
        progress = load_state(self.output, self.model, optimizer, identity, average) or Progress()
        self.processes.start_alike(self.model, progress.step)
        self.model.train()
        return _State(optimizer, average, progress, identity)

    def _batch(self, lengths: list[int], step: int, per_epoch: int) -> list[int]:
        epoch, place = divmod(step, per_epoch)
        if not hasattr(self, "_epoch") or self._epoch[0] != epoch:
            self._epoch = (epoch, epoch_batches(lengths, self.config.batch_size, self.config.seed, epoch))
        return self._epoch[1][place]

    def _step(self, step: int, features: list[Feature], state: _State, steps: _Steps) -> float:
        """Train on a batch; returns its loss."""
        for group in state.optimizer.param_groups:
            group["lr"] = group["peak"] * schedule(step, steps.total, self.config.warmup)
        self.processes.seed(self.config.seed, step)
        batch, share = self.processes.share(collate(features, self.task.kind, pad_token=self.pad_token))
        loss = training_step(lambda: self.loss(self.model, batch) * share, state.optimizer, self.config, self.processes)
        if state.average is not None:
            state.average.update(step)
        return loss

    def _evaluate(self, state: _State) -> None:
        """Score the weights, or their average where there is one, and keep them if they are the best so far."""
        with state.average.applied() if state.average is not None else nullcontext():
            if self.processes.is_first:
                self._keep_if_best(state.progress, self._scores(state.progress.step))

    def _scores(self, step: int) -> dict[str, float]:
        self.model.eval()
        scores = self.score(self.model, self.config.eval_examples)
        self.model.train()
        self._log(step=step, scores=scores)
        tqdm.write(f"step {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in scores.items()))
        return scores

    def _keep_if_best(self, progress: Progress, scores: Mapping[str, float]) -> None:
        value = scores[self.task.metric]
        if progress.best_score is None or value >= progress.best_score:
            progress.best_score, progress.best_step = value, progress.step
            weights = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
            save_file(weights, self.output / BEST_FILE)

    def _save(self, state: _State) -> None:
        if self.processes.is_first:
            save_state(self.output, self.model, state.optimizer, state.progress, state.identity, state.average)

    def _restore_best(self) -> None:
        if self.processes.is_first:
            self.model.load_state_dict(load_file(self.output / BEST_FILE))
        self.model.cpu().eval()

    def _report(self, bar: tqdm[Any], step: int, meter: _Meter) -> None:
        bar.set_postfix(loss=f"{meter.loss:.4f}", tokens_s=f"{meter.rate:.0f}")
        self._log(step=step, loss=meter.loss, tokens_per_second=round(meter.rate))

    def _log(self, **entry: Any) -> None:
        if not self.processes.is_first:
            return
        with (self.output / LOG_FILE).open("a") as log:
            log.write(json.dumps({"time": round(time.time(), 1), **entry}) + "\n")


def discard_state(folder: Path) -> None:
    """Remove from a run's folder the files that only an unfinished run needs."""
    for name in (STATE_FILE, BEST_FILE):
        (folder / name).unlink(missing_ok=True)


def make_optimizer(model: nn.Module, config: TrainConfig, rules: ParameterRules = ALL_ALIKE) -> torch.optim.AdamW:
    """Return AdamW without decay on biases and LayerNorm (Devlin et al. 2018); a group's "peak" is its highest rate."""
    named = dict(model.named_parameters())
    rest = [(name, p) for name, p in named.items() if name not in rules.rates]
    decay = [p for name, p in rest if p.ndim > 1 and name not in rules.without_decay]
    plain = [p for name, p in rest if p.ndim <= 1 or name in rules.without_decay]
    groups: list[dict[str, Any]] = [
        {"params": decay, "weight_decay": config.weight_decay, "peak": config.learning_rate},
        {"params": plain, "weight_decay": 0.0, "peak": config.learning_rate},
    ]
    for rate in sorted(set(rules.rates.values())):
        own = [p for name, p in named.items() if rules.rates.get(name) == rate]
        groups.append({"params": own, "weight_decay": 0.0, "peak": rate})
    return torch.optim.AdamW(groups, lr=config.learning_rate, eps=1e-8, fused=True)


def schedule(step: int, total: int, warmup: float) -> float:
    """Return the factor of the learning rate at a 0-based step: linear warm-up from 0, then linear decay to 0."""
    rise = warmup * total
    if step < rise:
        return (step + 1) / (rise + 1)
    return (total - step) / max(1.0, total - rise)


@contextmanager
def _stop_signals(announce: bool) -> Generator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a flag that is checked between steps; a second Ctrl-C stops at once."""
    stop = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal stop
        if stop:
            raise KeyboardInterrupt
        stop = True
        if announce:
            tqdm.write("stopping after this step; the state is being saved, and the same command goes on from it")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
