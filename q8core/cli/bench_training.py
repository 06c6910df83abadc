"""The work of `q8bert bench --training`: measure, show progress, print tables, write the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from q8core.bench.environment import environment
from q8core.bench.tables import heading, training_tables
from q8core.bench.threads import parse_threads
from q8core.bench.timing import Timing
from q8core.bench.training import TrainingRun, measure_training
from q8core.bench.workloads import Shape
from q8core.cli.bench_run import check_lengths, progress_bar
from q8core.cli.console import table_console
from q8core.training.config import best_precision


def run_training_bench(
    *, models: Sequence[str], shapes: Sequence[str], threads: Sequence[str], repeats: int, json_file: Path | None
) -> bool:
    """Compare training steps; return False if Ctrl-C stopped it, after printing and writing what was measured.

    Raises:
        InputError: an unknown model or thread count, or a shape that is malformed or too long for a model.
    """
    run = TrainingRun(models, [Shape.parse(text).workload() for text in shapes], parse_threads(threads), repeats)
    for name in models:
        check_lengths(name, run.workloads)
    console, machine, precision = table_console(), environment(), best_precision()
    console.print(heading(machine, run.threads), highlight=False, soft_wrap=True)
    found, done = list[Timing](), True
    with progress_bar(console) as progress:
        bar = progress.add_task("", total=run.rounds)
        try:
            measure_training(
                run, found, lambda text: progress.update(bar, description=text), lambda: progress.advance(bar)
            )
        except KeyboardInterrupt:
            done = False
    title = f"training steps, {repeats} rounds, contenders taking turns, ours in {precision}"
    for table in training_tables(found, title):
        console.print(table)
    if json_file is not None:
        report: dict[str, object] = {"environment": machine, "threads": run.threads, "task": "classify"}
        report |= {"precision": precision, "dropout": 0.0}
        report |= {"workloads": {workload.name: workload.describe() for workload in run.workloads}}
        report |= {"timings": [timing.to_dict() for timing in found], "complete": done}
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if not done:
        console.print("stopped early; what is above was measured")
    return done
