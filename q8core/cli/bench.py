"""``q8bert bench``: compares speed or memory of the engines with stock transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from q8core.cli.options import JsonFile
from q8core.errors import InputError

if TYPE_CHECKING:
    from q8core.model.head import TaskKind

DEFAULT_SHAPES = ("1x32", "1x128", "8x128", "1x384")
TRAINING_SHAPES = ("32x32", "16x192")


def bench(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="bert-base, bert-large or minilm-l6; repeatable. [default: bert-base; with --training minilm-l6]"
        ),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="With --memory: a checkpoint instead of --model.")] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help=f"SEQUENCESxLENGTH, without padding; repeatable. [default: {' '.join(DEFAULT_SHAPES)}; "
            f"with --training {' '.join(TRAINING_SHAPES)}]"
        ),
    ] = None,
    workload: Annotated[
        list[str] | None,
        typer.Option(
            help="Texts of mixed lengths instead of or beside shapes: sst2 (256 sentences in batches of 16) or squad "
            "(64 windows in batches of 4), with built-in lengths or, as sst2=FILE, those of a file; repeatable."
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder with tokenizer.json, such as a checkpoint: counts a file's tokens.")
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="transformers, fp32, int8-native, int8-onednn or int8-fbgemm; w4-native or w2-native, an encoder with "
            "weights of 4 or 2 bits; split-native, BinaryBERT's of half the width; or a peer; repeatable. [default: "
            "all that compute in fp32 or int8, without peers]"
        ),
    ] = None,
    peers: Annotated[
        bool,
        typer.Option(
            "--peers",
            help="Also ONNX Runtime, OpenVINO, CTranslate2 and torch's dynamic quantization: pip install "
            "'q8bert[peers]' first.",
        ),
    ] = False,
    task: Annotated[
        str | None,
        typer.Option(
            help="qa: every token goes through every layer; classify: ours cut the last layer short. [default: qa]"
        ),
    ] = None,
    threads: Annotated[
        list[str] | None,
        typer.Option(help="CPU threads, or several counts to compare (1,2); repeatable. [default: all usable CPUs]"),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds in which the engines take turns.")] = 15,
    memory: Annotated[
        bool, typer.Option("--memory", help="Measure memory, each engine in two processes of its own.")
    ] = False,
    training: Annotated[
        bool,
        typer.Option(
            "--training",
            help="Time whole training steps of a classifier, without dropout: `q8bert train` with and without "
            "quantization, stock transformers in fp32 and under bf16 autocast.",
        ),
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw the speeds into this PNG: pip install 'q8bert[plot]' first.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Compare speed (or memory) of the engines with stock transformers, and other runtimes, on random weights."""
    if json_file is not None and not json_file.parent.is_dir():
        raise InputError(f"--json {json_file}: the folder {json_file.parent} does not exist")
    if training:
        given = {
            "--checkpoint": checkpoint, "--workload": workload, "--tokenizer": tokenizer, "--engine": engine,
            "--peers": peers, "--task": task, "--memory": memory, "--plot": plot,
        }  # fmt: skip
        _refuse_with_training([name for name, value in given.items() if value])
        from q8core.cli.bench_training import run_training_bench

        done = run_training_bench(
            models=model or ["minilm-l6"],
            shapes=shape or TRAINING_SHAPES,
            threads=threads or (),
            repeats=repeats,
            json_file=json_file,
        )
        raise typer.Exit(0 if done else 130)
    kind = _task_kind(task)
    _check_options(checkpoint, plot, memory=memory, model=model)
    from q8core.cli.bench_run import run_bench

    done = run_bench(
        models=model or ["bert-base"],
        checkpoint=checkpoint,
        shapes=shape or (() if workload else DEFAULT_SHAPES),
        texts=workload or (),
        tokenizer=tokenizer,
        engines=tuple(engine or ()),
        task=kind,
        threads=threads or (),
        repeats=repeats,
        memory=memory,
        peers=peers,
        plot=plot,
        json_file=json_file,
    )
    if not done:
        raise typer.Exit(130)


def _task_kind(task: str | None) -> TaskKind:
    task = task or "qa"
    if task not in ("classify", "qa"):
        raise InputError(f"--task is {task!r}; allowed: classify, qa")
    return task


def _check_options(checkpoint: Path | None, plot: Path | None, *, memory: bool, model: list[str] | None) -> None:
    """Refuse options of a comparison of engines that do not go together."""
    if checkpoint is not None and (not memory or model):
        raise InputError("--checkpoint is for --memory and takes the place of --model")
    if plot is not None and memory:
        raise InputError("--plot draws speeds: leave out either --plot or --memory")


def _refuse_with_training(given: list[str]) -> None:
    if given:
        raise InputError(
            f"{given[0]} does not go with --training, which times steps of a classifier with random weights; allowed "
            "beside it: --model, --shape, --threads, --repeats, --json"
        )
