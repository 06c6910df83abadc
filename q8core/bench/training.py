"""Timing training steps: random weights, every contender trained from them, all taking turns in one process."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from transformers.utils import logging

from q8core.bench.contender import STOCK, Contender
from q8core.bench.folder import random_folder
from q8core.bench.models import bench_config
from q8core.bench.threads import threads_text
from q8core.bench.timing import Timing, take_turns
from q8core.bench.training_steps import AUTOCAST, STEPS, load_step
from q8core.bench.workloads import Workload
from q8core.training.allocator import keep_freed_memory


@dataclass(frozen=True)
class TrainingRun:
    """What to time.

    Attributes:
        models: names of shapes.
        workloads: the batch of a step, one for each.
        threads: CPU thread counts; everything is timed with each.
        repeats: rounds.
    """

    models: Sequence[str]
    workloads: Sequence[Workload]
    threads: Sequence[int]
    repeats: int

    @property
    def rounds(self) -> int:
        """Rounds of all models, thread counts and workloads."""
        return len(self.models) * len(self.threads) * len(self.workloads) * self.repeats


def measure_training(
    run: TrainingRun, found: list[Timing], say: Callable[[str], None], on_round: Callable[[], None]
) -> None:
    """Time all steps into `found`.

    The process keeps freed memory, as in `q8bert train`; stock transformers profits from that too.

    Args:
        run: what to time.
        found: receives each workload's timings when its rounds are complete.
        say: called with a description of each step.
        on_round: called after each round.
    """
    logging.disable_progress_bar()  # transformers' bar would garble ours
    keep_freed_memory()
    for model in run.models:
        say(f"{model}: writing random weights")
        vocabulary = bench_config(model).spec.vocabulary
        with random_folder(model, "classify") as folder:
            for threads in run.threads:
                torch.set_num_threads(threads)
                say(f"{model}, {threads_text((threads,))}: loading")
                steps: dict[str, Contender] = {name: load_step(name, folder) for name in STEPS}
                for workload in run.workloads:
                    say(f"{model}, {threads_text((threads,))}: {workload.name}")
                    timings = take_turns(model, threads, steps, workload, vocabulary, run.repeats, on_round)
                    found += with_stock(timings)
                del steps  # free weights and moments before those of the next thread count are loaded
                gc.collect()


def with_stock(timings: Sequence[Timing]) -> list[Timing]:
    """Return the timings of one workload, each with both stock steps of the same rounds as references."""
    references = {t.engine: (t.engine, t.milliseconds) for t in timings if t.engine in (STOCK, AUTOCAST)}
    return [replace(timing, references=references) for timing in timings]
