"""``q8bert bench``: speed or memory of the engines, beside stock transformers, in one run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import torch
import typer
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

DEFAULT_SHAPES = ("1x32", "1x128", "8x128", "1x384")


def bench(
    model: Annotated[
        list[str] | None, typer.Option(help="bert-base, bert-large or minilm-l6; repeatable. [default: bert-base]")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="With --memory: a checkpoint instead of --model.")] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(help=f"SEQUENCESxLENGTH, without padding; repeatable. [default: {' '.join(DEFAULT_SHAPES)}]"),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(help="transformers, fp32, int8-native, int8-onednn or int8-fbgemm; repeatable. [default: all]"),
    ] = None,
    task: Annotated[
        str, typer.Option(help="qa: every token goes through every layer; classify: ours cut the last layer short.")
    ] = "qa",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. [default: all usable CPUs]")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds in which the engines take turns.")] = 15,
    memory: Annotated[bool, typer.Option("--memory", help="Measure memory, each engine in its own process.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write everything to this file.")] = None,
) -> None:
    """Compare speed (or memory) of the engines with stock transformers on random weights."""
    if task not in ("classify", "qa"):
        raise InputError(f"--task is {task!r}; allowed: classify, qa")
    if checkpoint is not None and (not memory or model):
        raise InputError("--checkpoint is for --memory and takes the place of --model")
    if json_file is not None and not json_file.parent.is_dir():
        raise InputError(f"--json {json_file}: the folder {json_file.parent} does not exist")
    names, threads = check_contenders(tuple(engine or ())), threads or usable_cpus()
    configs = {name: bench_config(name) for name in model or ["bert-base"]}
    shapes = [Shape.parse(text) for text in shape or DEFAULT_SHAPES]
    for name, config in configs.items():
        longest = max(s.length for s in shapes)
        if longest > int(config.max_position_embeddings):
            raise InputError(f"--shape has {longest} tokens; {name} takes at most {config.max_position_embeddings}")
    console, machine = Console(), environment()
    console.print(heading(machine, threads), highlight=False, soft_wrap=True)
    report: dict[str, object] = {"environment": machine, "threads": threads, "task": task}
    if memory:
        done = _memory(console, report, names, list(configs), checkpoint, task, threads)
    else:
        done = _speed(console, report, names, list(configs), shapes, task, threads, repeats)
    if json_file is not None:
        json_file.write_text(json.dumps({**report, "complete": done}, indent=1) + "\n", encoding="utf-8")
    if not done:
        console.print("stopped early; what is above was measured")
        raise typer.Exit(130)


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
