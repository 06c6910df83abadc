"""``q8bert train``: fp32 fine-tuning, or quantization-aware training into an int8 checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from q8core.cli.before_training import prepare_training
from q8core.cli.data import DataOptions, echo_scores, text_model
from q8core.cli.options import (
    DataFolder,
    DevFile,
    Int8Only,
    LabelColumn,
    Labels,
    PairColumn,
    RecipeFolder,
    TaskName,
    TextColumn,
    TrainFile,
    TrainingLength,
)
from q8core.errors import InputError

if TYPE_CHECKING:
    from q8core.tasks.task import Task
    from q8core.training.config import TrainConfig
    from q8core.training.scheme_recipes import SchemeRecipe


def train(
    task: TaskName,
    model: Annotated[str, typer.Option(help="Pretrained or fine-tuned BERT: a folder or a hub id.")],
    output: Annotated[Path, typer.Option(help="Folder for the result; an unfinished run in it goes on.")],
    scheme: Annotated[
        str,
        typer.Option(
            help="fp32 to fine-tune in float; for QAT q8bert, q8bert-smooth, q8bert-attention, q8bert-paper; with "
            "weights of few bits qbert-4, qbert-3, qbert-2, qbert-mp, kdlsq-4, kdlsq-2, ternary, binary, "
            "binary-split, mkq; or a file."
        ),
    ] = "q8bert",
    data: DataFolder = None,
    train_file: TrainFile = None,
    dev_file: DevFile = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    labels: Labels = None,
    max_length: TrainingLength = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples (SQuAD: windows) a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate of AdamW.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Dropout of hidden states and attention.")] = None,
    width: Annotated[
        float | None,
        typer.Option(
            help="Share of a fine-tuned model's attention heads and feed-forward neurons to go on with, the most "
            "important ones. [default: the recipe's, or 1]"
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Order of the data and the new head's weights.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Stop after so many steps.")] = None,
    evals: Annotated[int | None, typer.Option(help="Evaluations, evenly spread.")] = None,
    eval_examples: Annotated[int | None, typer.Option(help="Dev examples for these; the result has all.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Fine-tuned float model of the same task to learn from: a folder or a hub id.")
    ] = None,
    distill_labels: Annotated[
        float | None, typer.Option(help="Beside a teacher, weight of the labels' own loss. [default: the recipe's]")
    ] = None,
    distill_logits: Annotated[
        float | None, typer.Option(help="Weight of the teacher's answers. [default: the recipe's]")
    ] = None,
    distill_hidden: Annotated[
        float | None, typer.Option(help="Weight of its hidden states. [default: the recipe's]")
    ] = None,
    distill_attention: Annotated[
        float | None, typer.Option(help="Weight of its attention scores. [default: the recipe's]")
    ] = None,
    distill_relations: Annotated[
        float | None,
        typer.Option(help="Weight of its last layer's relations between tokens. [default: the recipe's]"),
    ] = None,
    relation_heads: Annotated[
        int | None, typer.Option(help="Heads of these relations. [default: the recipe's, or the model's own]")
    ] = None,
    distill_temperature: Annotated[
        float | None, typer.Option(help="Softens the answers. [default: the recipe's]")
    ] = None,
    precision: Annotated[str, typer.Option(help="auto (the recipe's), fp32, or bf16 mixed precision.")] = "auto",
    recipes: RecipeFolder = None,
    int8_only: Int8Only = False,
) -> None:
    """Fine-tune in fp32, or train with quantization into an int8 checkpoint."""
    from q8core.quant import find_scheme
    from q8core.training.recipe import load_recipe

    quantized = scheme != "fp32"
    _check_options(precision, quantized=quantized, int8_only=int8_only)
    distillation = {
        "distill_labels": distill_labels,
        "distill_logits": distill_logits,
        "distill_hidden": distill_hidden,
        "distill_attention": distill_attention,
        "distill_relations": distill_relations,
        "relation_heads": relation_heads,
        "distill_temperature": distill_temperature,
    }
    options = DataOptions(task, data, train_file, dev_file, text_column, pair_column, label_column, max_length, labels)
    work = _read(model, options)
    recipe = load_recipe(task, recipes)
    own = recipe.of_scheme(find_scheme(scheme).name) if quantized else None
    config = (own.config if own else recipe.fp32).changed(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        dropout=dropout,
        width=width,
        seed=seed,
        max_steps=max_steps,
        evals=evals,
        eval_examples=eval_examples,
        precision=None if precision == "auto" else precision,
        **distillation,
    )
    if own is not None and own.table:
        _tell_table(own)
    if teacher is None:
        _check_own_teacher(model, own)
        teacher = _own_teacher(model, work, distillation, wanted=own is not None and own.teacher)
    prepare_training(quantized)
    _run(model, work, config, scheme, output, data=options.description, keep_float=not int8_only, teacher=teacher)


def _run(
    model: str,
    work: Task,
    config: TrainConfig,
    scheme: str,
    output: Path,
    *,
    data: str,
    keep_float: bool,
    teacher: str | None,
) -> None:
    """Train, together with the processes that torchrun started; the first one shows the scores."""
    from q8core.training.finetune import finetune
    from q8core.training.processes import joined_processes
    from q8core.training.qat import train_quantized

    with joined_processes() as processes:
        if scheme == "fp32":
            scores = finetune(model, work, config, output, data, teacher=teacher)
        else:
            scores = train_quantized(model, work, config, scheme, output, data, keep_float=keep_float, teacher=teacher)
        if processes.is_first:
            echo_scores(output, scores)


def _check_options(precision: str, *, quantized: bool, int8_only: bool) -> None:
    """Refuse a precision that does not exist, and an option that `--scheme fp32` has no use for."""
    if precision not in ("auto", "fp32", "bf16"):
        raise InputError(f"--precision is {precision!r}; allowed: auto, fp32, bf16")
    if int8_only and not quantized:
        raise InputError("--int8-only is for int8 checkpoints; --scheme fp32 makes none")


def _tell_table(own: SchemeRecipe) -> None:
    """Say which table of the recipe holds, and which model it is for."""
    changes = ", ".join(f"{name} {value}" for name, value in own.changes.items())
    before = f"; it is for a model trained with {own.after}, taught by the last float one (--teacher)"
    typer.echo(f"note: {own.table}: {changes or 'no changes'}{before if own.after else ''}", err=True)


def _check_own_teacher(model: str, own: SchemeRecipe | None) -> None:
    """Refuse to take a model trained with another scheme for the fine-tuned one, which teaches."""
    from q8core.checkpoint.manifest import MANIFEST_FILE

    if own is not None and own.after and own.teacher and (Path(model) / MANIFEST_FILE).is_file():
        raise InputError(f"--model {model} was trained with quantization; name the fine-tuned model with --teacher")


def _own_teacher(model: str, work: Task, distillation: Mapping[str, float | None], *, wanted: bool) -> str | None:
    """Return the model as its own teacher where that is wanted and possible; without one, refuse what needs one."""
    from q8core.training.distillation import why_not_itself

    reason = why_not_itself(model, work) if wanted else ""
    if wanted and not reason:
        return model
    for name, value in distillation.items():
        if value is not None:
            raise InputError(f"--{name.replace('_', '-')} is {value}, but it needs --teacher")
    if reason:
        typer.echo(f"note: {reason}; so it is no teacher, and training goes by the labels", err=True)
    return None


def _read(model: str, options: DataOptions) -> Task:
    """Read the data for a model that can be trained on it, and log if inputs are shorter than the model allows."""
    from q8core.checkpoint.text_input import own_length
    from q8core.training.model import check_inputs, check_trainable, find_source

    source = find_source(model)
    check_trainable(source, options.kind)
    work = options.read(text_model(source, options.kind, None), with_train=True)
    check_inputs(source, work)
    own = own_length(source.path, source.config)
    if options.max_length is None and work.max_length < own:
        typer.echo(f"note: inputs are {work.max_length} tokens at most (--max-length); the model takes {own}", err=True)
    return work
