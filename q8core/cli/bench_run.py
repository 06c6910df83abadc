"""The work of `q8bert bench`: measure, show progress, print tables, write the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from q8core.bench.choice import choose_contenders
from q8core.bench.contender import FEW_BITS
from q8core.bench.contenders import missing_engines
from q8core.bench.environment import environment
from q8core.bench.folder import random_folder
from q8core.bench.models import bench_config
from q8core.bench.peers.registry import PEER_NAMES, about, peer_versions
from q8core.bench.plot import check_plot, plot_run, subtitle_of
from q8core.bench.resident import Resident, measurable, measure_resident
from q8core.bench.speed import Measured, SpeedRun, measure_speed
from q8core.bench.tables import comparison_tables, heading, memory_table, timing_tables
from q8core.bench.threads import parse_threads, threads_text
from q8core.bench.timing import Timing
from q8core.bench.workloads import Shape, Workload, parse_workload
from q8core.checkpoint import Checkpoint
from q8core.cli.console import table_console
from q8core.errors import InputError
from q8core.model.head import TaskKind


def run_bench(
    *,
    models: Sequence[str],
    checkpoint: Path | None,
    shapes: Sequence[str],
    texts: Sequence[str],
    tokenizer: Path | None,
    engines: tuple[str, ...],
    task: TaskKind,
    threads: Sequence[str],
    repeats: int,
    memory: bool,
    peers: bool,
    plot: Path | None,
    json_file: Path | None,
) -> bool:
    """Compare the engines; return False if Ctrl-C stopped it, after printing and writing what was measured.

    Raises:
        InputError: an unknown model, engine, workload or thread count, a sequence longer than a model's positions, or a
            picture that cannot be drawn.
    """
    if plot is not None:
        check_plot(plot)
    names, counts = choose_contenders(engines, peers=peers), parse_threads(threads)
    if memory and len(counts) > 1:
        raise InputError(f"--memory is measured with one thread count; --threads names {len(counts)}")
    if checkpoint is not None and any(name in (*PEER_NAMES, *FEW_BITS) for name in names):
        raise InputError(
            f"peers, {', '.join(FEW_BITS)} are measured on random weights: leave out either --checkpoint or these"
        )
    workloads = [Shape.parse(text).workload() for text in shapes]
    workloads += [parse_workload(text, tokenizer) for text in texts]
    for name in models:
        check_lengths(name, workloads)
    console, machine = table_console(), environment()
    console.print(heading(machine, counts), highlight=False, soft_wrap=True)
    for name, reason in ({} if engines else missing_engines()).items():
        console.print(f"without {name}: {reason}", highlight=False, soft_wrap=True)
    report: dict[str, object] = {"environment": machine, "threads": counts, "task": task}
    timings: Sequence[Timing] = ()
    if memory:
        done = _memory(console, report, names, models, checkpoint, task, counts[0])
    else:
        done, timings = _speed(console, report, SpeedRun(models, workloads, names, task, counts, repeats))
    if json_file is not None:
        json_file.write_text(json.dumps({**report, "complete": done}, indent=1) + "\n", encoding="utf-8")
    if plot is not None and timings:
        what = f"random weights, task {task}, {repeats} rounds"
        title = f"{', '.join(models)}, {threads_text(counts)}"
        plot_run(timings, title, subtitle_of(machine, peer_versions(names), what), plot)
    if not done:
        console.print("stopped early; what is above was measured")
    return done


def check_lengths(model: str, workloads: Sequence[Workload]) -> None:
    """Refuse sequences longer than the model's positions."""
    longest, limit = max(workload.longest for workload in workloads), bench_config(model).spec.positions
    if longest > int(limit):
        raise InputError(f"the longest sequence has {longest} tokens; {model} takes at most {limit}")


def _speed(console: Console, report: dict[str, object], run: SpeedRun) -> tuple[bool, list[Timing]]:
    """Time all models and workloads into report and tables; return False if Ctrl-C stopped it, and the timings."""
    found, complete = Measured(), True
    with progress_bar(console) as progress:
        bar = progress.add_task("", total=run.rounds)
        try:
            measure_speed(
                run, found, lambda text: progress.update(bar, description=text), lambda: progress.advance(bar)
            )
        except KeyboardInterrupt:
            complete = False
    title = f"{run.repeats} rounds, contenders taking turns, task {run.task}, random weights"
    for table in (*timing_tables(found.timings, title), *comparison_tables(found.timings, found.load_seconds)):
        console.print(table)
    report["workloads"] = {workload.name: workload.describe() for workload in run.workloads}
    report["peers"] = {name: about(name) for name in run.engines if name in PEER_NAMES}
    report["peer_versions"] = peer_versions(run.engines)
    report["load_seconds"] = [
        {"model": model, "threads": threads, "engine": name, "seconds": seconds}
        for (model, threads), loads in found.load_seconds.items()
        for name, seconds in loads.items()
    ]
    report["timings"] = [timing.to_dict() for timing in found.timings]
    return complete, found.timings


def _memory(
    console: Console,
    report: dict[str, object],
    names: tuple[str, ...],
    models: Sequence[str],
    checkpoint: Path | None,
    task: TaskKind,
    threads: int,
) -> bool:
    """Measure memory into the report and a table per model; return False if Ctrl-C stopped it."""
    if checkpoint is not None:
        opened = Checkpoint.open(checkpoint)
        found, complete = _measure_each(console, measurable(names, checkpoint), checkpoint, opened.task, threads)
        _show_memory(console, report, opened.name, found)
        return complete
    for model in models:
        with random_folder(model, task) as folder:
            found, complete = _measure_each(console, names, folder, task, threads)
        _show_memory(console, report, model, found)
        if not complete:
            return False
    return True


def _measure_each(
    console: Console, names: Sequence[str], folder: Path, task: TaskKind, threads: int
) -> tuple[list[Resident], bool]:
    found: list[Resident] = []
    with progress_bar(console) as progress:
        bar = progress.add_task("", total=len(names))
        try:
            for name in names:
                progress.update(bar, description=f"{name} in processes of its own")
                found.append(measure_resident(name, folder, task, threads))
                progress.advance(bar)
        except KeyboardInterrupt:
            return found, False
    return found, True


def _show_memory(console: Console, report: dict[str, object], model: str, found: Sequence[Resident]) -> None:
    if found:
        title = f"{model}: MiB added to a fresh process, and to a 2nd one beside it; MiB of a whole process"
        console.print(memory_table(found, title))
    memory = cast("dict[str, object]", report.setdefault("memory", {}))
    memory[model] = [row.to_dict() for row in found]


def progress_bar(console: Console) -> Progress:
    """Return a progress bar that describes the current step and disappears at the end."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)
