"""A task ready to train and score: token features in, logits out, a number at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from q8core.errors import InputError
from q8core.tasks.classify import encode_text
from q8core.tasks.examples import ClassifyData, QAExample, TextExample
from q8core.tasks.metrics import accuracy, squad_scores
from q8core.tasks.qa import Window, best_answers, encode_windows
from q8core.tasks.squad import read_squad
from q8core.tasks.sst2 import read_sst2

TaskKind = Literal["classify", "qa"]
# Answers longer than this many tokens are cut in SQuAD's usual evaluation (Devlin et al. 2018).
SQUAD_MAX_ANSWER_LEN = 30
SQUAD_DOC_STRIDE = 128


@dataclass(frozen=True)
class Feature:
    """One unpadded input; ``target`` is ``(label,)``, or ``(start, end)`` token positions, or empty."""

    input_ids: npt.NDArray[np.int32]
    token_type_ids: npt.NDArray[np.int8]
    target: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Length in tokens."""
        return len(self.input_ids)


def make_feature(input_ids: Sequence[int], token_type_ids: Sequence[int], target: tuple[int, ...] = ()) -> Feature:
    """Pack Python lists into compact arrays: a SQuAD epoch holds 15 million tokens."""
    return Feature(np.asarray(input_ids, np.int32), np.asarray(token_type_ids, np.int8), target)


@dataclass(frozen=True)
class ClassifyTask:
    """Accuracy on labelled texts."""

    data: ClassifyData
    tokenizer: Tokenizer
    max_length: int = 128
    kind: TaskKind = field(default="classify", init=False)
    metric: str = field(default="accuracy", init=False)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes by index."""
        return self.data.labels

    @property
    def train_examples(self) -> Sequence[TextExample]:
        """The training texts, not yet encoded."""
        return self.data.train

    def with_train(self, examples: Sequence[TextExample]) -> ClassifyTask:
        """The same task with other training texts."""
        return replace(self, data=replace(self.data, train=tuple(examples)))

    def train_features(self) -> list[Feature]:
        """Tokens and labels of the training texts."""
        return self._features(self.data.train)

    def dev_features(self, limit: int | None = None) -> list[Feature]:
        """Tokens of the first ``limit`` dev texts."""
        return self._features(self.data.dev[:limit])

    def score(self, logits: Sequence[torch.Tensor]) -> dict[str, float]:
        """Accuracy (0..1) of logits ``(labels,)`` for the first ``len(logits)`` dev texts."""
        predicted = [int(row.argmax()) for row in logits]
        return {"accuracy": accuracy(predicted, [e.label for e in self.data.dev[: len(logits)]])}

    def _features(self, examples: Sequence[TextExample]) -> list[Feature]:
        features: list[Feature] = []
        for example in examples:
            encoded = encode_text(self.tokenizer, example.text, example.text_pair, self.max_length)
            features.append(make_feature(encoded.input_ids, encoded.token_type_ids, (example.label,)))
        return features


@dataclass
class QATask:
    """Exact match and F1 on SQuAD v1.1."""

    train: list[QAExample]
    dev: list[QAExample]
    tokenizer: Tokenizer
    max_length: int = 384
    kind: TaskKind = field(default="qa", init=False)
    metric: str = field(default="f1", init=False)
    labels: tuple[str, ...] = field(default=(), init=False)
    _windows: list[tuple[QAExample, list[Window]]] = field(default_factory=list, init=False)

    @property
    def train_examples(self) -> Sequence[QAExample]:
        """The training questions, not yet encoded."""
        return self.train

    def with_train(self, examples: Sequence[QAExample]) -> QATask:
        """The same task with other training questions."""
        return QATask(list(examples), self.dev, self.tokenizer, self.max_length)

    def train_features(self) -> list[Feature]:
        """Windows with answer positions; a window without the whole answer points at [CLS]."""
        features: list[Feature] = []
        for example in self.train:
            for window in self._encode(example):
                target = answer_positions(window, example)
                features.append(make_feature(window.input_ids, window.token_type_ids, target))
        return features

    def dev_features(self, limit: int | None = None) -> list[Feature]:
        """All windows of the first ``limit`` dev questions."""
        examples = self.dev[:limit]
        if len(self._windows) != len(examples):
            self._windows = [(example, self._encode(example)) for example in examples]
        return [make_feature(w.input_ids, w.token_type_ids) for _, windows in self._windows for w in windows]

    def score(self, logits: Sequence[torch.Tensor]) -> dict[str, float]:
        """EM and F1 (percent) of logits ``(window length, 2)`` for the windows of the last ``dev_features``."""
        if len(logits) != sum(len(windows) for _, windows in self._windows):
            raise InputError("one tensor of logits is needed for each window of dev_features()")
        predictions: dict[str, str] = {}
        place = 0
        for example, windows in self._windows:
            part = logits[place : place + len(windows)]
            place += len(windows)
            best = best_answers(windows, part, example.context, max_answer_len=SQUAD_MAX_ANSWER_LEN)
            predictions[example.id] = best[0].answer
        return squad_scores(predictions, {example.id: example.answers for example, _ in self._windows})

    def _encode(self, example: QAExample) -> list[Window]:
        return encode_windows(self.tokenizer, example.question, example.context, self.max_length, SQUAD_DOC_STRIDE)


Task = ClassifyTask | QATask


def answer_positions(window: Window, example: QAExample) -> tuple[int, int]:
    """Token positions of the first and last token that overlap the answer; (0, 0) if it is not all here."""
    first, last = example.answer_start, example.answer_start + len(example.answers[0])
    inside = [i for i, place in enumerate(window.offsets) if place is not None and place[0] < last and place[1] > first]
    if not inside:
        return 0, 0
    left, right = window.offsets[inside[0]], window.offsets[inside[-1]]
    assert left is not None
    assert right is not None
    return (inside[0], inside[-1]) if left[0] <= first and right[1] >= last else (0, 0)


def read_task(name: str, folder: Path, tokenizer: Tokenizer, max_length: int | None, with_train: bool) -> Task:
    """Read a public data set from its official files: ``sst2`` or ``squad``."""
    if name == "sst2":
        return ClassifyTask(read_sst2(folder, with_train), tokenizer, max_length or 128)
    if name == "squad":
        train = read_squad(_squad_file(folder, "train")) if with_train else []
        return QATask(train, read_squad(_squad_file(folder, "dev")), tokenizer, max_length or 384)
    raise InputError(f"unknown task {name!r}; allowed: sst2, squad, or classify for your own files")


def _squad_file(folder: Path, split: str) -> Path:
    names = (f"{split}-v1.1.json", f"{split}-v1.1.json.gz")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder} has neither {names[0]} nor {names[1]}")
