"""``q8bert quantize``: an int8 checkpoint of a fine-tuned model, without training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from q8core.cli.data import DataOptions, echo_scores, text_model
from q8core.cli.options import (
    TASK_NAMES,
    DataFolder,
    DevFile,
    Int8Only,
    JsonFile,
    LabelColumn,
    Labels,
    MaxLength,
    PairColumn,
    TextColumn,
    TrainFile,
)
from q8core.errors import InputError

if TYPE_CHECKING:
    from q8core.checkpoint.float_source import FloatSource
    from q8core.quant import Scheme
    from q8core.tasks.unlabelled import UnlabelledTask

CALIBRATION_EXAMPLES = 512
_UNTRAINED = ("static", "static-attention", "dynamic", "qbert-4", "kdlsq-4")
"""Presets that may be good enough without training; what has fewer bits is not."""


@dataclass(frozen=True)
class _Asked:
    """The options for quantizing both with and without labels."""

    model: str
    output: Path
    scheme: str | None
    max_length: int | None
    calibration_examples: int | None
    keep_float: bool


def quantize(
    model: Annotated[str, typer.Option(help="Fine-tuned encoder: a folder or a hub id.")],
    output: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    texts: Annotated[
        Path | None,
        typer.Option(
            help="Texts without labels, .txt (one a line), .csv, .tsv or .jsonl, instead of --task and its data."
        ),
    ] = None,
    target_agreement: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="With --texts, the share of answers that must be those of fp32. [default: 0.98]"
        ),
    ] = None,
    write_anyway: Annotated[
        bool, typer.Option("--write-anyway", help="Write the best even if it misses --target-agreement.")
    ] = False,
    task: Annotated[str | None, typer.Option(help=f"With labelled data: {TASK_NAMES}.")] = None,
    scheme: Annotated[
        str | None,
        typer.Option(
            help="static or static-attention (calibrated), dynamic, qbert-4 or kdlsq-4 (weights of 4 bits), "
            "or a file. [default: static; with --texts static, then dynamic, then the better with layers in float, "
            "until the target is reached]"
        ),
    ] = None,
    data: DataFolder = None,
    train_file: TrainFile = None,
    dev_file: DevFile = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    labels: Labels = None,
    max_length: MaxLength = None,
    calibration_examples: Annotated[
        int | None, typer.Option(min=1, help="Training examples, or texts, to calibrate on. [default: 512]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Which training examples. [default: 42]")] = None,
    int8_only: Int8Only = False,
    json_file: JsonFile = None,
) -> None:
    """Quantize a fine-tuned model without training it again.

    With labelled data (--task) the result is scored. With --texts no labels are needed: the quantized model is compared
    with the float model on texts that it was not calibrated on, and is written only if enough answers are the same.
    """
    asked = _Asked(model, output, scheme, max_length, calibration_examples, not int8_only)
    if texts is None:
        for name, given in (("target-agreement", target_agreement is not None), ("write-anyway", write_anyway)):
            if given:
                raise InputError(f"--{name} is for --texts: where there are labels, the scores say what is lost")
        if json_file is not None:
            raise InputError("--json is for --texts, whose report it writes")
        if task is None:
            raise InputError("give --texts FILE for texts without labels, or --task with its labelled data")
        options = DataOptions(
            task, data, train_file, dev_file, text_column, pair_column, label_column, max_length, labels
        )
        _with_labels(asked, options, seed)
        return
    needs_labels = {"task": task, "data": data, "train-file": train_file, "dev-file": dev_file}
    needs_labels |= {"label-column": label_column, "labels": labels, "seed": seed}
    for name, value in needs_labels.items():
        if value is not None:
            raise InputError(f"--{name} {value} does not go with --texts, which needs no labels")
    _without_labels(asked, texts, text_column, pair_column, target_agreement, write_anyway, json_file)


def _with_labels(asked: _Asked, options: DataOptions, seed: int | None) -> None:
    from q8core.checkpoint.text_input import own_length
    from q8core.training.model import check_inputs, find_source
    from q8core.training.qat import quantize_trained

    name = asked.scheme or "static"
    calibrated = _post_training(name, asked.calibration_examples, seed).needs_ranges
    source = find_source(asked.model)
    source.require_head(options.kind)
    reads = text_model(source, options.kind, own_length(source.path, source.config))
    work = options.read(reads, with_train=calibrated)
    check_inputs(source, work)
    scores = quantize_trained(
        asked.model,
        work,
        name,
        asked.output,
        options.description,
        keep_float=asked.keep_float,
        calibration_examples=asked.calibration_examples or CALIBRATION_EXAMPLES,
        seed=42 if seed is None else seed,
    )
    echo_scores(asked.output, scores)


def _without_labels(
    asked: _Asked,
    texts: Path,
    text_column: str | None,
    pair_column: str | None,
    target: float | None,
    write_anyway: bool,
    json_file: Path | None,
) -> None:
    from q8core.errors import QualityError
    from q8core.training.gate import TARGET, quantize_unlabelled
    from q8core.training.model import find_source

    scheme = None if asked.scheme is None else _post_training(asked.scheme, asked.calibration_examples)
    examples = asked.calibration_examples or CALIBRATION_EXAMPLES
    work = _read(find_source(asked.model), texts, text_column, pair_column, asked.max_length, examples)
    try:
        report = quantize_unlabelled(
            asked.model,
            work,
            scheme,
            asked.output,
            target=TARGET if target is None else target,
            keep_float=asked.keep_float,
            write_anyway=write_anyway,
            say=typer.echo,
        )
    except QualityError as error:
        if json_file is not None:
            _save(json_file, error.report)
        raise
    assert report.written is not None
    if json_file is not None:
        _save(json_file, report.describe())
    passed = "passed" if report.passed else "written although it misses the target of"
    typer.echo(f"{asked.output}: {report.written.scheme.name}, {passed} {report.target:.2%}")


def _read(
    source: FloatSource,
    file: Path,
    text_column: str | None,
    pair_column: str | None,
    max_length: int | None,
    calibration: int,
) -> UnlabelledTask:
    from q8core.checkpoint.text_input import check_pairs, checked_tokenizer, own_length
    from q8core.tasks.columns import Columns
    from q8core.tasks.task import SQUAD_LENGTH, longest_input
    from q8core.tasks.unlabelled import UnlabelledTask, divided, read_unlabelled

    kind = source.require_head()
    first, second = (
        (text_column or "question", pair_column or "context") if kind == "qa" else (text_column, pair_column)
    )
    pairs = read_unlabelled(file, Columns(first or "text", second, None))
    tokenizer, usual = checked_tokenizer(source.path, source.config), own_length(source.path, source.config)
    length = longest_input(
        max_length, min(usual, SQUAD_LENGTH) if kind == "qa" else usual, source.config.spec.positions
    )
    found = UnlabelledTask(kind, source.labels, source.several_labels, tokenizer, length, *divided(pairs, calibration))
    if found.has_pairs:
        check_pairs(source.path, tokenizer, source.config.spec.token_types)
    return found


def _save(file: Path, report: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _post_training(name: str, calibration_examples: int | None, seed: int | None = None) -> Scheme:
    """Return a scheme that needs no training.

    Raises:
        InputError: it is a preset for training, or options of calibration were given that it does without.
        SchemeError: there is no such scheme.
    """
    from q8core.quant import PRESETS, find_scheme

    if name in PRESETS and name not in _UNTRAINED:
        allowed = f"{', '.join(_UNTRAINED)}, or a file (for QAT use `q8bert train`)"
        raise InputError(f"--scheme is {name!r}; allowed: {allowed}")
    scheme = find_scheme(name)
    if scheme.average_bits is not None:
        raise InputError(
            f"--scheme {name} leaves the bits to the model (average_bits): train with it, or let `q8bert sensitivity` "
            "write a scheme with the bits"
        )
    for option, value in (("calibration-examples", calibration_examples), ("seed", seed)):
        if value is not None and not scheme.needs_ranges:
            raise InputError(f"--{option} {value} is for calibration, which --scheme {name} does without")
    return scheme
