"""Timing models and workloads: write random weights, load every contender from them, time them in turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers.utils import logging

from q8core.bench.comparison import is_int8, with_references
from q8core.bench.contender import FEW_BITS, Contender
from q8core.bench.contenders import load_contender
from q8core.bench.floor import load_few_bits_floor, load_floors
from q8core.bench.folder import prepare_few_bits, random_folder
from q8core.bench.models import bench_config
from q8core.bench.peers.registry import PEER_NAMES, about, import_runtime, load_peer, prepare_peer
from q8core.bench.threads import threads_text
from q8core.bench.timing import Timing, take_turns
from q8core.bench.workloads import Workload
from q8core.checkpoint import Checkpoint
from q8core.model.head import TaskKind


@dataclass(frozen=True)
class SpeedRun:
    """What to time.

    Attributes:
        models: names of shapes.
        workloads: the workloads of each model.
        engines: names of contenders; the floors of their precisions are added.
        task: classify or qa.
        threads: CPU thread counts; everything is timed with each.
        repeats: rounds.
    """

    models: Sequence[str]
    workloads: Sequence[Workload]
    engines: Sequence[str]
    task: TaskKind
    threads: Sequence[int]
    repeats: int

    @property
    def rounds(self) -> int:
        """Rounds of all models, thread counts and workloads."""
        return len(self.models) * len(self.threads) * len(self.workloads) * self.repeats


@dataclass
class Measured:
    """The measurements so far, which an interrupted run keeps.

    Attributes:
        timings: the timings, in the order taken.
        load_seconds: (model, threads) -> contender -> seconds from its files (in the page cache) to ready to run.
    """

    timings: list[Timing] = field(default_factory=list[Timing])
    load_seconds: dict[tuple[str, int], dict[str, float]] = field(
        default_factory=dict[tuple[str, int], dict[str, float]]
    )


def measure_speed(run: SpeedRun, found: Measured, say: Callable[[str], None], on_round: Callable[[], None]) -> None:
    """Time everything into `found`.

    Args:
        run: what to time.
        found: receives each workload's timings when its rounds are complete.
        say: called with a description of each step.
        on_round: called after each round.

    Raises:
        EngineError: if a kernel cannot be used on this machine, or a peer cannot be prepared.
    """
    logging.disable_progress_bar()  # transformers' bar would garble ours
    for model in run.models:
        say(f"{model}: writing random weights")
        with random_folder(model, run.task) as folder:
            for name in run.engines:
                if name in PEER_NAMES:
                    say(f"{model}: preparing {name} ({about(name)}), up to a minute or two")
                    prepare_peer(name, folder, run.task)
                elif name in FEW_BITS:
                    say(f"{model}: writing weights of {FEW_BITS[name]} bits")
                    prepare_few_bits(name, folder)
            checkpoint = Checkpoint.open(folder)
            for threads in run.threads:
                _measure_model(model, checkpoint, threads, run, found, say, on_round)


def _measure_model(
    model: str,
    checkpoint: Checkpoint,
    threads: int,
    run: SpeedRun,
    found: Measured,
    say: Callable[[str], None],
    on_round: Callable[[], None],
) -> None:
    """Time the workloads of a model with one thread count; all contenders are loaded for it, as peers require."""
    gc.collect()  # free the contenders of the previous thread count before these are loaded
    torch.set_num_threads(threads)
    config, seconds = bench_config(model), found.load_seconds.setdefault((model, threads), {})
    where, contenders = f"{model}, {threads_text((threads,))}", dict[str, Contender]()
    for name in run.engines:
        say(f"{where}: loading {name}")
        contenders[name], seconds[name] = _timed_load(name, checkpoint, threads)
    for int8 in sorted({is_int8(name) for name in run.engines if name not in FEW_BITS}):
        contenders |= load_floors(checkpoint, threads, int8=int8)
    for name in run.engines:
        if name in FEW_BITS:
            contenders |= load_few_bits_floor(name, checkpoint, threads)
    for workload in run.workloads:
        say(f"{where}: {workload.name}")
        timings = take_turns(model, threads, contenders, workload, config.spec.vocabulary, run.repeats, on_round)
        found.timings += with_references(timings, PEER_NAMES)


def _timed_load(name: str, checkpoint: Checkpoint, threads: int) -> tuple[Contender, float]:
    """Load a contender; the time excludes importing a peer's package and verifying the checkpoint."""
    if name in PEER_NAMES:
        import_runtime(name)
    begin = time.perf_counter()
    if name in PEER_NAMES:
        contender = load_peer(name, checkpoint.path, checkpoint.task, threads)
    else:
        contender = load_contender(name, checkpoint, threads)
    return contender, time.perf_counter() - begin
