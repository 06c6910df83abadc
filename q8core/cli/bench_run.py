"""What `q8bert bench` does once its options are read: measure, show progress, print tables, write the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from q8core.bench.contenders import build_contender, check_contenders
from q8core.bench.environment import environment, usable_cpus
from q8core.bench.models import bench_config
from q8core.bench.resident import Resident, measurable, measure_resident, random_folder
from q8core.bench.tables import heading, memory_table, timing_tables
from q8core.bench.timing import Shape, Timing, take_turns
from q8core.checkpoint import Checkpoint
from q8core.errors import InputError
from q8core.tasks.task import TaskKind


def run_bench(
    *,
    models: Sequence[str],
    checkpoint: Path | None,
    shapes: Sequence[str],
    engines: tuple[str, ...],
    task: TaskKind,
    threads: int | None,
    repeats: int,
    memory: bool,
    json_file: Path | None,
) -> bool:
    """Compare the engines; False if Ctrl-C ended it early, with what was measured until then printed and written.

    Raises:
        InputError: an unknown model or engine, or a shape that a model does not take.
    """
    names, threads = check_contenders(engines), threads or usable_cpus()
    configs = {name: bench_config(name) for name in models}
    parsed = [Shape.parse(text) for text in shapes]
    longest = max(shape.length for shape in parsed)
    for name, config in configs.items():
        if longest > int(config.max_position_embeddings):
            raise InputError(f"--shape has {longest} tokens; {name} takes at most {config.max_position_embeddings}")
    console, machine = Console(), environment()
    console.print(heading(machine, threads), highlight=False, soft_wrap=True)
    report: dict[str, object] = {"environment": machine, "threads": threads, "task": task}
    if memory:
        done = _memory(console, report, names, list(configs), checkpoint, task, threads)
    else:
        done = _speed(console, report, names, list(configs), parsed, task, threads, repeats)
    if json_file is not None:
        json_file.write_text(json.dumps({**report, "complete": done}, indent=1) + "\n", encoding="utf-8")
    if not done:
        console.print("stopped early; what is above was measured")
    return done


def _speed(
    console: Console,
    report: dict[str, object],
    names: Sequence[str],
    models: Sequence[str],
    shapes: Sequence[Shape],
    task: TaskKind,
    threads: int,
    repeats: int,
) -> bool:
    """Time all models and shapes into the report and a table; False if Ctrl-C ended it."""
    torch.set_num_threads(threads)
    timings: list[Timing] = []
    complete = True
    with _progress(console) as progress:
        bar = progress.add_task("", total=len(models) * len(shapes) * repeats)
        try:
            for model in models:
                progress.update(bar, description=f"{model}: building")
                config = bench_config(model)
                contenders = {name: build_contender(name, config, task, threads) for name in names}
                for shape in shapes:
                    progress.update(bar, description=f"{model} {shape}")
                    timings += take_turns(
                        model, contenders, shape, int(config.vocab_size), repeats, lambda: progress.advance(bar)
                    )
        except KeyboardInterrupt:
            complete = False
    for table in timing_tables(timings, f"{repeats} rounds, engines taking turns, task {task}, random weights"):
        console.print(table)
    report["timings"] = [timing.to_dict() for timing in timings]
    return complete


def _memory(
    console: Console,
    report: dict[str, object],
    names: tuple[str, ...],
    models: Sequence[str],
    checkpoint: Path | None,
    task: TaskKind,
    threads: int,
) -> bool:
    """Measure memory into the report and a table for each model; False if Ctrl-C ended it."""
    if checkpoint is not None:
        opened = Checkpoint.open(checkpoint)
        found, complete = _measure_each(console, measurable(names, checkpoint), checkpoint, opened.task, threads, True)
        _show_memory(console, report, opened.name, found)
        return complete
    for model in models:
        with random_folder(model, task) as folder:
            found, complete = _measure_each(console, names, folder, task, threads, False)
        _show_memory(console, report, model, found)
        if not complete:
            return False
    return True


def _measure_each(
    console: Console, names: Sequence[str], folder: Path, task: TaskKind, threads: int, verified: bool
) -> tuple[list[Resident], bool]:
    found: list[Resident] = []
    with _progress(console) as progress:
        bar = progress.add_task("", total=len(names))
        try:
            for name in names:
                progress.update(bar, description=f"{name} in its own process")
                found.append(measure_resident(name, folder, task, threads, verified=verified))
                progress.advance(bar)
        except KeyboardInterrupt:
            return found, False
    return found, True


def _show_memory(console: Console, report: dict[str, object], model: str, found: Sequence[Resident]) -> None:
    if found:
        console.print(memory_table(found, f"{model}: MiB added to a fresh process"))
    memory = cast("dict[str, object]", report.setdefault("memory", {}))
    memory[model] = [row.to_dict() for row in found]


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)
