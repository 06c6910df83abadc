"""``q8bert evaluate``: score any checkpoint on any backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from q8core.cli.data import DataOptions
from q8core.cli.options import (
    DataFolder,
    DevFile,
    JsonFile,
    LabelColumn,
    MaxLength,
    PairColumn,
    TaskName,
    TextColumn,
)
from q8core.errors import InputError


def evaluate(
    task: TaskName,
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint folder; a float Hugging Face folder has fp32 only.")],
    backend: Annotated[list[str] | None, typer.Option(help="fp32, int8; repeat for both. [default: int8]")] = None,
    kernel: Annotated[str, typer.Option(help="int8 kernel: auto, native, onednn or fbgemm.")] = "auto",
    data: DataFolder = None,
    dev_file: DevFile = None,
    text_column: TextColumn = "text",
    pair_column: PairColumn = None,
    label_column: LabelColumn = "label",
    max_length: MaxLength = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many dev examples.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Run the dev set through an engine, as the service would, and print the scores."""
    from q8core.checkpoint import Checkpoint
    from q8core.engines import load_engine
    from q8core.evaluate import evaluate_engine

    opened = Checkpoint.open(checkpoint)
    if (task == "squad") != (opened.task == "qa"):
        raise InputError(f"{checkpoint} was made for {opened.task}, which --task {task} cannot score")
    options = DataOptions(
        task, data, None, dev_file, text_column, pair_column, label_column, max_length or opened.max_length
    )
    labels = opened.labels if task == "classify" else None
    positions = opened.config.max_position_embeddings
    work = options.read(opened.tokenizer(), positions, with_train=False, labels=labels)
    if work.labels != opened.labels:
        raise InputError(f"{checkpoint} has the labels {opened.labels}, the data has {work.labels}")
    results: dict[str, Any] = {}
    for name in backend or ["int8"]:
        engine = load_engine(opened, name, kernel if name == "int8" else "auto")
        results[name] = evaluate_engine(engine, work, limit)
        line = ", ".join(f"{metric} {value:.4f}" for metric, value in results[name].items())
        typer.echo(f"{opened.name} {name} ({engine.kernel}): {line}")
    if json_file:
        json_file.write_text(json.dumps({"checkpoint": opened.name, "task": task, "scores": results}, indent=2) + "\n")
