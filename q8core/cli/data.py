"""The data of train, quantize and evaluate, from the options that they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from q8core.errors import InputError
from q8core.tasks.glue import GLUE

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from q8core.checkpoint.float_source import FloatSource
    from q8core.model.head import TaskKind
    from q8core.tasks.task import Task

OWN_FILES = "classify"
_TASKS = (*GLUE, "squad", OWN_FILES)


@dataclass(frozen=True)
class TextModel:
    """The facts about a model that reading data depends on.

    Attributes:
        tokenizer: its tokenizer.
        positions: the longest input that it can take.
        outputs: the labels of its outputs by index; empty if it gets a new head.
        usual: the default length of inputs in tokens; None for the length that the task is trained with.
        several_labels: whether it gives a text several labels at once.
    """

    tokenizer: Tokenizer
    positions: int
    outputs: tuple[str, ...] = ()
    usual: int | None = None
    several_labels: bool = False


def text_model(source: FloatSource, kind: TaskKind, usual: int | None) -> TextModel:
    """Return the facts about a float model that has, or will get, the head of a task.

    Raises:
        CheckpointError: its tokenizer is missing, damaged, or does not fit.
    """
    from q8core.checkpoint.text_input import checked_tokenizer

    return TextModel(
        checked_tokenizer(source.path, source.config),
        source.config.spec.positions,
        source.labels if kind == source.head == "classify" else (),
        usual,
        source.several_labels,
    )


@dataclass(frozen=True)
class DataOptions:
    """The data options of the command line; None for those not given.

    Raises:
        InputError: the task is unknown, or an option is for another kind of task.
    """

    task: str
    data: Path | None = None
    train_file: Path | None = None
    dev_file: Path | None = None
    text_column: str | None = None
    pair_column: str | None = None
    label_column: str | None = None
    max_length: int | None = None
    labels: str | None = None

    def __post_init__(self) -> None:
        if self.task not in _TASKS:
            raise InputError(f"unknown task {self.task!r}; allowed: {', '.join(_TASKS)} (your own files)")
        own = ("train_file", "dev_file", "text_column", "pair_column", "label_column")
        for name in ("data",) if self.task == OWN_FILES else own:
            value = getattr(self, name)
            if value is not None:
                reads = "your own --train-file and --dev-file" if name == "data" else "the official files in --data"
                raise InputError(
                    f"--{name.replace('_', '-')} {value} does not go with --task {self.task}, which reads {reads}"
                )

    @property
    def kind(self) -> TaskKind:
        """The kind of head that the task needs."""
        return "qa" if self.task == "squad" else "classify"

    @property
    def description(self) -> str:
        """The description of the data in a manifest: names, no paths."""
        if self.task != OWN_FILES:
            return self.task
        return ", ".join(file.name for file in (self.train_file, self.dev_file) if file)

    def read(self, model: TextModel, with_train: bool) -> Task:
        """Read and check everything, before any long computation.

        Args:
            model: the model that will read the data.
            with_train: whether training data is needed.

        Raises:
            InputError: an option is missing or unused, or the data is wrong or does not fit the model.
        """
        from q8core.tasks.labels import parse_labels
        from q8core.tasks.task import read_task

        asked = parse_labels(self.labels)
        if self.task != OWN_FILES:
            if self.data is None:
                raise InputError(f"--task {self.task} needs --data FOLDER with its official files")
            return read_task(
                self.task,
                self.data,
                model.tokenizer,
                self.max_length,
                model.positions,
                with_train=with_train,
                usual=model.usual,
                outputs=model.outputs,
                asked=asked,
            )
        return self._read_own(model, with_train, asked)

    def _read_own(self, model: TextModel, with_train: bool, asked: tuple[str, ...] | None) -> Task:
        from q8core.tasks.examples import is_regression
        from q8core.tasks.tabular import Columns, read_classify
        from q8core.tasks.task import TEXT_LENGTH, ClassifyTask, longest_input

        if self.dev_file is None or (with_train and self.train_file is None):
            raise InputError("--task classify needs " + ("--train-file and " if with_train else "") + "--dev-file")
        if self.train_file is not None and not with_train:
            raise InputError(f"--train-file {self.train_file} is not used: a dynamic scheme needs no training data")
        if is_regression(model.outputs):
            raise InputError("the model predicts a number, which --task classify cannot score; allowed: stsb")
        length = longest_input(self.max_length, model.usual or TEXT_LENGTH, model.positions)
        columns = Columns(self.text_column or "text", self.pair_column, self.label_column or "label")
        try:
            read = read_classify(self.train_file, self.dev_file, columns, model.outputs, asked)
        except InputError as error:
            if not model.several_labels:
                raise
            raise InputError(
                f"{error}. The model gives a text several labels (multi-label): it can be quantized and scored on data "
                "with one label a text; several labels a text are not supported yet"
            ) from error
        return ClassifyTask(read, model.tokenizer, length)


def echo_scores(output: Path, scores: Mapping[str, Mapping[str, float]]) -> None:
    """Print a line for each scored version of a finished model."""
    for variant, values in scores.items():
        line = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        typer.echo(f"{output} {variant}: {line}")
