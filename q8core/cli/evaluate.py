"""``q8bert evaluate``: score any checkpoint on any backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from q8core.cli.data import DataOptions, TextModel
from q8core.cli.options import (
    DataFolder,
    DevFile,
    JsonFile,
    LabelColumn,
    Labels,
    MaxLength,
    PairColumn,
    TaskName,
    TextColumn,
)
from q8core.errors import InputError
from q8core.tasks.examples import MULTI_LABEL

if TYPE_CHECKING:
    from q8core.checkpoint import Checkpoint


def evaluate(
    task: TaskName,
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint folder; a float Hugging Face folder has fp32 only.")],
    backend: Annotated[list[str] | None, typer.Option(help="fp32, int8; repeat for both. [default: int8]")] = None,
    kernel: Annotated[
        str | None, typer.Option(help="int8 kernel: auto, native, onednn or fbgemm. [default: auto]")
    ] = None,
    data: DataFolder = None,
    dev_file: DevFile = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    labels: Labels = None,
    max_length: MaxLength = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many dev examples.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Run the dev set through an engine, as the service would, and print the scores."""
    from q8core.checkpoint import Checkpoint
    from q8core.engines import load_engine
    from q8core.evaluate import evaluate_engine
    from q8core.tasks.task import ClassifyTask

    backends = backend or ["int8"]
    if kernel is not None and "int8" not in backends:
        raise InputError(f"--kernel {kernel} is for the backend int8; fp32 chooses its own")
    options = DataOptions(task, data, None, dev_file, text_column, pair_column, label_column, max_length, labels)
    opened = Checkpoint.open(checkpoint)
    if options.kind != opened.task:
        raise InputError(f"{checkpoint} was made for {opened.task}, which --task {task} cannot score")
    work = options.read(_text_model(opened), with_train=False)
    opened.check_pairs(work.tokenizer, work.has_pairs)
    if isinstance(work, ClassifyTask):
        work = work.scored_on(opened.labels)
    results: dict[str, Any] = {}
    for name in backends:
        engine = load_engine(opened, name, kernel or "auto" if name == "int8" else "auto")
        results[name] = evaluate_engine(engine, work, limit)
        line = ", ".join(f"{metric} {value:.4f}" for metric, value in results[name].items())
        typer.echo(f"{opened.name} {name} ({engine.kernel}): {line}")
    if json_file:
        report = {"checkpoint": opened.name, "task": task, "scores": results, "cut": work.cut.counts.get("dev", 0)}
        json_file.write_text(json.dumps(report, indent=2) + "\n")


def _text_model(opened: Checkpoint) -> TextModel:
    """Return the facts about a checkpoint that reading data depends on; the default length is that of serving."""
    return TextModel(
        opened.tokenizer(),
        opened.config.spec.positions,
        opened.labels,
        opened.max_length,
        opened.problem_type == MULTI_LABEL,
    )
