"""Timing models and workloads: write random weights, load every contender from them, let them take turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import BertConfig
from transformers.utils import logging

from q8core.bench.comparison import is_int8, with_references
from q8core.bench.contenders import Contender, load_contender
from q8core.bench.floor import FLOORS, Floor
from q8core.bench.folder import random_folder
from q8core.bench.models import bench_config
from q8core.bench.peers.registry import PEER_NAMES, about, import_runtime, load_peer, prepare_peer
from q8core.bench.timing import Timing, take_turns
from q8core.bench.workloads import Workload
from q8core.tasks.task import TaskKind


@dataclass(frozen=True)
class SpeedRun:
    """What is timed.

    Attributes:
        models: names of shapes.
        workloads: what each runs.
        engines: names of contenders; the floors of their precisions join them.
        task: classify or qa.
        threads: CPU threads of each.
        repeats: rounds.
    """

    models: Sequence[str]
    workloads: Sequence[Workload]
    engines: Sequence[str]
    task: TaskKind
    threads: int
    repeats: int

    @property
    def rounds(self) -> int:
        """Rounds of all models and workloads."""
        return len(self.models) * len(self.workloads) * self.repeats


@dataclass
class Measured:
    """What was measured so far: an interrupted run keeps it.

    Attributes:
        timings: in the order taken.
        load_seconds: model -> contender -> seconds from its files in the page cache to ready to run.
    """

    timings: list[Timing] = field(default_factory=list[Timing])
    load_seconds: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])


def measure_speed(run: SpeedRun, found: Measured, say: Callable[[str], None], on_round: Callable[[], None]) -> None:
    """Time everything into `found`.

    Args:
        run: what to time.
        found: takes each workload's timings when its rounds are complete.
        say: is told what is being done.
        on_round: is called after each round.

    Raises:
        EngineError: if a kernel cannot be used on this machine, or a peer cannot be prepared.
    """
    torch.set_num_threads(run.threads)
    logging.disable_progress_bar()  # transformers' own would run across ours
    for model in run.models:
        config = bench_config(model)
        say(f"{model}: writing random weights")
        with random_folder(model, run.task) as folder:
            seconds = found.load_seconds.setdefault(model, {})
            contenders: dict[str, Contender] = {}
            for name in run.engines:
                if name in PEER_NAMES:
                    say(f"{model}: preparing {name} ({about(name)}), up to a minute or two")
                    prepare_peer(name, folder, run.task)
                say(f"{model}: loading {name}")
                contenders[name], seconds[name] = _timed_load(name, folder, run)
        contenders |= _floors(config, run)
        for workload in run.workloads:
            say(f"{model} {workload.name}")
            timings = take_turns(model, contenders, workload, int(config.vocab_size), run.repeats, on_round)
            found.timings += with_references(timings, PEER_NAMES)


def _timed_load(name: str, folder: Path, run: SpeedRun) -> tuple[Contender, float]:
    if name in PEER_NAMES:
        import_runtime(name)
    load = load_peer if name in PEER_NAMES else load_contender
    begin = time.perf_counter()
    contender = load(name, folder, run.task, run.threads)
    return contender, time.perf_counter() - begin


def _floors(config: BertConfig, run: SpeedRun) -> dict[str, Contender]:
    precisions = sorted({is_int8(name) for name in run.engines})
    return {FLOORS[int8]: Floor(config, run.task, int8=int8) for int8 in precisions}
