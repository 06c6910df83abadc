"""``q8bert quantize``: an int8 checkpoint of a fine-tuned model, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from q8core.cli.data import DataOptions, echo_scores
from q8core.cli.options import (
    DataFolder,
    DevFile,
    Int8Only,
    LabelColumn,
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
    text_column: TextColumn = "text",
    pair_column: PairColumn = None,
    label_column: LabelColumn = "label",
    max_length: MaxLength = None,
    calibration_examples: Annotated[int, typer.Option(min=1, help="Training examples to calibrate on.")] = 512,
    calibration: Annotated[str, typer.Option(help="Range choice: max, percentile or mse.")] = "max",
    seed: Annotated[int, typer.Option(help="Which training examples.")] = 42,
    int8_only: Int8Only = False,
) -> None:
    """Quantize a fine-tuned model without training it again, and score the result."""
    from q8core.quant import PRESETS, find_scheme
    from q8core.tokenizer import load_tokenizer
    from q8core.training.head import model_labels, require_head
    from q8core.training.model import bert_config, model_folder
    from q8core.training.qat import quantize_trained

    if scheme in PRESETS and scheme not in ("static", "static-attention", "dynamic"):
        allowed = "static, static-attention, dynamic, or a file (for QAT use `q8bert train`)"
        raise InputError(f"--scheme is {scheme!r}; allowed: {allowed}")
    calibrated = find_scheme(scheme).has_activation("ema")
    if calibration not in ("max", "percentile", "mse"):
        raise InputError(f"--calibration is {calibration!r}; allowed: max, percentile, mse")
    options = DataOptions(task, data, train_file, dev_file, text_column, pair_column, label_column, max_length)
    folder = model_folder(model)
    positions = bert_config(model).max_position_embeddings
    require_head(model, "qa" if task == "squad" else "classify")
    labels = model_labels(model) if task == "classify" else None
    work = options.read(load_tokenizer(folder), positions, with_train=calibrated, labels=labels)
    scores = quantize_trained(
        model,
        work,
        scheme,
        output,
        options.description,
        keep_float=not int8_only,
        calibration_examples=calibration_examples,
        method=calibration,
        seed=seed,
    )
    echo_scores(output, scores)
