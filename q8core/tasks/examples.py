"""Examples, the output of every reader, and finding their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from q8core.errors import InputError

# The only name of a regression's output, as in Hugging Face's configs.
REGRESSION_LABELS = ("LABEL_0",)
# Hugging Face's problem_type of a head that gives a text several labels, with a sigmoid for each.
MULTI_LABEL = "multi_label_classification"


def is_regression(labels: Sequence[str]) -> bool:
    """Whether a head with these outputs predicts a number: one output is a regression, several are classes."""
    return len(labels) == 1


@dataclass(frozen=True)
class TextExample:
    """A text, or a pair, with the index of its label, or with its score for regression."""

    text: str
    text_pair: str | None
    label: int | float


@dataclass(frozen=True)
class ClassifyData:
    """A data set of labelled or scored texts in memory; regression has the single label ``LABEL_0``.

    Attributes:
        labels: names of the classes by index.
        train: examples to learn from.
        dev: examples to score.
        numbers: numbers of the classes; see :class:`q8core.tasks.labels.Classes`.
        outputs: outputs of the model for the classes; see there.
    """

    labels: tuple[str, ...]
    train: tuple[TextExample, ...]
    dev: tuple[TextExample, ...]
    numbers: tuple[int, ...] | None = None
    outputs: tuple[int, ...] | None = None


@dataclass(frozen=True)
class QAExample:
    """A SQuAD question; ``answers`` are all accepted texts, ``answer_start`` is the first one's code point."""

    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    answer_start: int


def official_file(folder: Path, name: str) -> Path:
    """Return the file of a public data set, plain or compressed with gzip.

    Raises:
        InputError: the folder has neither.
    """
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise InputError(f"{folder} has neither {name} nor {name}.gz")
