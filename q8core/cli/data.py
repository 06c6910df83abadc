"""Where train, quantize and evaluate find their data, from the options that they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from q8core.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from q8core.tasks.task import Task


@dataclass(frozen=True)
class DataOptions:
    """Where the data is, as given on the command line."""

    task: str
    data: Path | None = None
    train_file: Path | None = None
    dev_file: Path | None = None
    text_column: str = "text"
    pair_column: str | None = None
    label_column: str = "label"
    max_length: int | None = None

    @property
    def description(self) -> str:
        """What a manifest says about the data: names, no paths."""
        if self.task != "classify":
            return self.task
        return ", ".join(file.name for file in (self.train_file, self.dev_file) if file)

    def read(
        self, tokenizer: Tokenizer, positions: int, with_train: bool, labels: tuple[str, ...] | None = None
    ) -> Task:
        """Read and check everything before any time is spent.

        Args:
            tokenizer: the model's.
            positions: the longest input that it can take.
            with_train: whether training data is needed.
            labels: names of the classes by index, for the user's own files; None for those of the training data.

        Raises:
            InputError: an option is missing or does not fit the task, or the data is wrong.
        """
        from q8core.tasks.examples import is_regression
        from q8core.tasks.tabular import Columns, read_classify
        from q8core.tasks.task import TEXT_LENGTH, ClassifyTask, longest_input, read_task

        if self.task != "classify":
            if self.data is None:
                raise InputError(f"--task {self.task} needs --data FOLDER with its official files")
            return read_task(self.task, self.data, tokenizer, self.max_length, positions, with_train=with_train)
        if self.dev_file is None or (with_train and self.train_file is None):
            raise InputError("--task classify needs " + ("--train-file and " if with_train else "") + "--dev-file")
        if labels is not None and is_regression(labels):
            raise InputError("the model predicts a number, which --task classify cannot score; allowed: stsb")
        length = longest_input(self.max_length, TEXT_LENGTH, positions)
        columns = Columns(self.text_column, self.pair_column, self.label_column)
        train = self.train_file if with_train else None
        return ClassifyTask(read_classify(train, self.dev_file, columns, labels), tokenizer, length)


def echo_scores(output: Path, scores: Mapping[str, Mapping[str, float]]) -> None:
    """Print a line for each scored variant of a finished model."""
    for variant, values in scores.items():
        line = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        typer.echo(f"{output} {variant}: {line}")
