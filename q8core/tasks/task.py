"""Tasks ready to train and score: encoded features for a model, and scores from its logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from q8core.errors import InputError
from q8core.model.head import TaskKind
from q8core.tasks.classify import encode_text
from q8core.tasks.cut import CutTexts
from q8core.tasks.examples import ClassifyData, QAExample, TextExample, is_regression, official_file
from q8core.tasks.glue import GLUE, read_glue
from q8core.tasks.labels import Classes, differing
from q8core.tasks.metrics import METRICS, squad_scores
from q8core.tasks.qa import MAX_QUESTION_LEN, Answer, Window, best_answers, encode_windows, question_is_cut
from q8core.tasks.squad import read_squad

# Longest answer in tokens in SQuAD's usual evaluation (Devlin et al. 2018).
SQUAD_MAX_ANSWER_LEN = 30
SQUAD_DOC_STRIDE = 128
TEXT_LENGTH, SQUAD_LENGTH = 128, 384
"""Default tokens of the longest input (Devlin et al. 2018)."""
SHORTEST_INPUT = 8


@dataclass(frozen=True)
class Feature:
    """One unpadded input; ``target`` is ``(label or score,)``, or ``(start, end)`` token positions, or empty."""

    input_ids: npt.NDArray[np.int32]
    token_type_ids: npt.NDArray[np.int8]
    target: tuple[int | float, ...] = ()

    def __len__(self) -> int:
        """Length in tokens."""
        return len(self.input_ids)


def make_feature(
    input_ids: Sequence[int], token_type_ids: Sequence[int], target: tuple[int | float, ...] = ()
) -> Feature:
    """Pack Python lists into compact arrays: a SQuAD epoch holds 15 million tokens."""
    return Feature(np.asarray(input_ids, np.int32), np.asarray(token_type_ids, np.int8), target)


@dataclass(frozen=True)
class ClassifyTask:
    """Texts or pairs with labels, or with a score to predict; ``metrics`` are names in :data:`METRICS`."""

    data: ClassifyData
    tokenizer: Tokenizer
    max_length: int = TEXT_LENGTH
    metrics: tuple[str, ...] = ("accuracy",)
    outputs: tuple[int, ...] | None = None
    """Index of each label among the outputs of the model to score; None if the order is the same."""
    kind: TaskKind = field(default="classify", init=False)
    cut: CutTexts = field(default_factory=lambda: CutTexts(), init=False, compare=False)

    @property
    def metric(self) -> str:
        """The metric that chooses the best weights."""
        return self.metrics[0]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes by index; the one name ``LABEL_0`` for regression."""
        return self.data.labels

    @property
    def classes(self) -> Classes:
        """The labels as `Classes`."""
        return Classes(self.data.labels, self.data.numbers, self.data.outputs)

    @property
    def has_pairs(self) -> bool:
        """Whether an input is a pair of texts."""
        return any(example.text_pair is not None for example in chain(self.data.train, self.data.dev))

    def scored_on(self, outputs: Sequence[str]) -> ClassifyTask:
        """Return the task for logits in the order of a model's outputs with these labels.

        Raises:
            InputError: the model has other labels.
        """
        if is_regression(self.labels) and is_regression(outputs):
            return self
        order = self.classes.order_among(outputs)
        if order is None:
            raise InputError(differing(outputs, self.labels))
        return self if order == tuple(range(len(order))) else replace(self, outputs=order)

    @property
    def train_examples(self) -> Sequence[TextExample]:
        """The training texts before encoding."""
        return self.data.train

    @property
    def dev_examples(self) -> Sequence[TextExample]:
        """The texts to score on before encoding."""
        return self.data.dev

    def with_train(self, examples: Sequence[TextExample]) -> ClassifyTask:
        """Return the same task with other training texts."""
        return replace(self, data=replace(self.data, train=tuple(examples)))

    def train_features(self) -> list[Feature]:
        """Return tokens and labels of the training texts."""
        return self._features("training", self.data.train)

    def dev_features(self, limit: int | None = None) -> list[Feature]:
        """Return tokens of the first ``limit`` dev texts."""
        return self._features("dev", self.data.dev[:limit])

    def score(self, logits: Sequence[npt.NDArray[np.float32]]) -> dict[str, float]:
        """Return all metrics (0..1 or -1..1) of logits ``(labels,)`` for the first ``len(logits)`` dev texts."""
        number = is_regression(self.labels)
        if self.outputs is not None:
            logits = [row[list(self.outputs)] for row in logits]
        predicted = [float(row[0]) if number else int(row.argmax()) for row in logits]
        expected = [example.label for example in self.data.dev[: len(logits)]]
        return {name: METRICS[name](predicted, expected) for name in self.metrics}

    def _features(self, part: str, examples: Sequence[TextExample]) -> list[Feature]:
        features: list[Feature] = []
        cut = 0
        for example in examples:
            encoded = encode_text(self.tokenizer, example.text, example.text_pair, self.max_length)
            features.append(make_feature(encoded.input_ids, encoded.token_type_ids, (example.label,)))
            cut += encoded.truncated
        self.cut.note(part, "texts", cut, len(features), self.max_length)
        return features


@dataclass
class QATask:
    """Exact match and F1 on SQuAD v1.1."""

    train: list[QAExample]
    dev: list[QAExample]
    tokenizer: Tokenizer
    max_length: int = SQUAD_LENGTH
    kind: TaskKind = field(default="qa", init=False)
    metric: str = field(default="f1", init=False)
    labels: tuple[str, ...] = field(default=(), init=False)
    has_pairs: bool = field(default=True, init=False)
    cut: CutTexts = field(default_factory=lambda: CutTexts(), init=False, compare=False)
    _windows: list[tuple[QAExample, list[Window]]] = field(default_factory=list, init=False)

    @property
    def train_examples(self) -> Sequence[QAExample]:
        """The training questions before encoding."""
        return self.train

    @property
    def dev_examples(self) -> Sequence[QAExample]:
        """The questions to score on before encoding."""
        return self.dev

    def with_train(self, examples: Sequence[QAExample]) -> QATask:
        """Return the same task with other training questions."""
        return QATask(list(examples), self.dev, self.tokenizer, self.max_length)

    def train_features(self) -> list[Feature]:
        """Return windows with answer positions; a window without the whole answer points at its first token."""
        features: list[Feature] = []
        cut = 0
        for example in self.train:
            windows = self._encode(example)
            cut += self._cuts_question(example, windows)
            for window in windows:
                target = answer_positions(window, example)
                features.append(make_feature(window.input_ids, window.token_type_ids, target))
        self.cut.note("training", "questions", cut, len(self.train), MAX_QUESTION_LEN)
        return features

    def dev_features(self, limit: int | None = None) -> list[Feature]:
        """Return all windows of the first ``limit`` dev questions."""
        examples = self.dev[:limit]
        if len(self._windows) != len(examples):
            self._windows = [(example, self._encode(example)) for example in examples]
            cut = sum(self._cuts_question(example, windows) for example, windows in self._windows)
            self.cut.note("dev", "questions", cut, len(examples), MAX_QUESTION_LEN)
        return [make_feature(w.input_ids, w.token_type_ids) for _, windows in self._windows for w in windows]

    @property
    def windows(self) -> int:
        """How many windows the last `dev_features` made."""
        return sum(len(windows) for _, windows in self._windows)

    def answers(self, logits: Sequence[npt.NDArray[np.float32]]) -> list[Answer]:
        """Return the best answer of each question from logits ``(window length, 2)`` for the last ``dev_features``."""
        if len(logits) != self.windows:
            raise InputError("one array of logits is needed for each window of dev_features()")
        found: list[Answer] = []
        place = 0
        for example, windows in self._windows:
            part = logits[place : place + len(windows)]
            place += len(windows)
            found.append(best_answers(windows, part, example.context, max_answer_len=SQUAD_MAX_ANSWER_LEN)[0])
        return found

    def score(self, logits: Sequence[npt.NDArray[np.float32]]) -> dict[str, float]:
        """Return EM and F1 (percent) of logits ``(window length, 2)`` for the last ``dev_features``."""
        examples = [example for example, _ in self._windows]
        predictions = {one.id: best.answer for one, best in zip(examples, self.answers(logits), strict=True)}
        return squad_scores(predictions, {one.id: one.answers for one in examples})

    def _encode(self, example: QAExample) -> list[Window]:
        return encode_windows(self.tokenizer, example.question, example.context, self.max_length, SQUAD_DOC_STRIDE)

    def _cuts_question(self, example: QAExample, windows: Sequence[Window]) -> bool:
        return question_is_cut(self.tokenizer, example.question, windows, MAX_QUESTION_LEN)


Task = ClassifyTask | QATask
"""What a model can be trained for."""


class Scorable(Protocol):
    """What a model can be run on, and what then says how well it did."""

    @property
    def kind(self) -> TaskKind:
        """The kind of head."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the outputs by index."""
        ...

    @property
    def max_length(self) -> int:
        """The longest input in tokens."""
        ...

    @property
    def metric(self) -> str:
        """The score that counts most."""
        ...

    @property
    def cut(self) -> CutTexts:
        """How many texts were cut."""
        ...

    def dev_features(self, limit: int | None = None) -> list[Feature]:
        """Tokens to run, of the first `limit` examples."""
        ...

    def score(self, logits: Sequence[npt.NDArray[np.float32]]) -> dict[str, float]:
        """Return scores by name, of logits for the last ``dev_features``."""
        ...


def answer_positions(window: Window, example: QAExample) -> tuple[int, int]:
    """Return positions of the first and last token of the answer; (0, 0) if the window lacks a part of it."""
    first, last = example.answer_start, example.answer_start + len(example.answers[0])
    inside = [i for i, place in enumerate(window.offsets) if place is not None and place[0] < last and place[1] > first]
    if not inside:
        return 0, 0
    left, right = window.offsets[inside[0]], window.offsets[inside[-1]]
    assert left is not None
    assert right is not None
    return (inside[0], inside[-1]) if left[0] <= first and right[1] >= last else (0, 0)


def longest_input(asked: int | None, usual: int, positions: int) -> int:
    """Return the longest input in tokens: as asked for, else the usual length, at most the model's positions.

    Raises:
        InputError: more was asked for than the model has positions, or too few for a text.
    """
    if asked is not None and not SHORTEST_INPUT <= asked <= positions:
        raise InputError(f"--max-length is {asked}; allowed: {SHORTEST_INPUT} to {positions} (the model's positions)")
    return asked or min(usual, positions)


def read_task(
    name: str,
    folder: Path,
    tokenizer: Tokenizer,
    max_length: int | None,
    positions: int,
    *,
    with_train: bool,
    usual: int | None = None,
    outputs: Sequence[str] = (),
    asked: Sequence[str] | None = None,
) -> Task:
    """Read a public data set from its official files: a task of :data:`GLUE`, or ``squad``.

    Args:
        name: the task's name.
        folder: the folder of its files.
        tokenizer: the model's tokenizer.
        max_length: longest input in tokens; None for the usual length.
        positions: positions of the model.
        with_train: whether to read the training data too.
        usual: the usual length; None for the length that the task is trained with.
        outputs: the model's labels by index; empty for a model without a head.
        asked: the task's labels in the order of the outputs, from ``--labels``.

    Raises:
        InputError: a file is wrong (names file and line), or the model cannot read inputs of that length.
    """
    if name in GLUE:
        length = longest_input(max_length, usual or TEXT_LENGTH, positions)
        data = read_glue(name, folder, with_train, outputs, asked)
        return ClassifyTask(data, tokenizer, length, GLUE[name].metrics)
    if name == "squad":
        if asked is not None:
            raise InputError("--labels is for classes; squad has none")
        # windows overlap, so shorter windows cut nothing
        length = longest_input(max_length, min(usual or SQUAD_LENGTH, SQUAD_LENGTH), positions)
        train = read_squad(official_file(folder, "train-v1.1.json")) if with_train else []
        return QATask(train, read_squad(official_file(folder, "dev-v1.1.json")), tokenizer, length)
    raise InputError(f"unknown task {name!r}; allowed: {', '.join(GLUE)}, squad, or classify for your own files")
