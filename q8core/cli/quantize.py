"""``q8bert quantize``: an int8 checkpoint of a fine-tuned model, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from q8core.cli.data import DataOptions, echo_scores, text_model
from q8core.cli.options import (
    DataFolder,
    DevFile,
    Int8Only,
    LabelColumn,
    Labels,
    MaxLength,
    PairColumn,
    TaskName,
    TextColumn,
    TrainFile,
)
from q8core.errors import InputError


def quantize(
    task: TaskName,
    model: Annotated[str, typer.Option(help="Fine-tuned BERT: a folder or a hub id.")],
    output: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    scheme: Annotated[
        str, typer.Option(help="static or static-attention (calibrated on training data), dynamic, or a file.")
    ] = "static",
    data: DataFolder = None,
    train_file: TrainFile = None,
    dev_file: DevFile = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    labels: Labels = None,
    max_length: MaxLength = None,
    calibration_examples: Annotated[
        int | None, typer.Option(min=1, help="Training examples to calibrate on. [default: 512]")
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(help="Range choice: max, percentile or mse. [default: max]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Which training examples. [default: 42]")] = None,
    int8_only: Int8Only = False,
) -> None:
    """Quantize a fine-tuned model without training it again, and score the result."""
    from q8core.checkpoint.text_input import own_length
    from q8core.quant import PRESETS, find_scheme
    from q8core.training.model import check_inputs, find_source
    from q8core.training.qat import quantize_trained

    if scheme in PRESETS and scheme not in ("static", "static-attention", "dynamic"):
        allowed = "static, static-attention, dynamic, or a file (for QAT use `q8bert train`)"
        raise InputError(f"--scheme is {scheme!r}; allowed: {allowed}")
    calibrated = find_scheme(scheme).needs_ranges
    if not calibrated:
        given = {"calibration": calibration, "calibration-examples": calibration_examples, "seed": seed}
        for name, value in given.items():
            if value is not None:
                raise InputError(f"--{name} {value} is for calibration, which --scheme {scheme} does without")
    if calibration not in (None, "max", "percentile", "mse"):
        raise InputError(f"--calibration is {calibration!r}; allowed: max, percentile, mse")
    options = DataOptions(task, data, train_file, dev_file, text_column, pair_column, label_column, max_length, labels)
    source = find_source(model)
    source.require_head(options.kind)
    reads = text_model(source, options.kind, own_length(source.path, source.config))
    work = options.read(reads, with_train=calibrated)
    check_inputs(source, work)
    scores = quantize_trained(
        model,
        work,
        scheme,
        output,
        options.description,
        keep_float=not int8_only,
        calibration_examples=calibration_examples or 512,
        method=calibration or "max",
        seed=42 if seed is None else seed,
    )
    echo_scores(output, scores)
