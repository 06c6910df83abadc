"""Texts without labels: what a model answers to them is compared with what it answered in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from q8core.arrays import Logits
from q8core.errors import InputError
from q8core.model.head import TaskKind
from q8core.tasks.agreement import Agreement, answer_agreement, label_agreement, number_agreement
from q8core.tasks.columns import Columns
from q8core.tasks.cut import CutTexts
from q8core.tasks.examples import ClassifyData, QAExample, TextExample, is_regression
from q8core.tasks.qa import Answer
from q8core.tasks.tabular import read_texts
from q8core.tasks.task import ClassifyTask, Feature, QATask

Texts = Sequence[tuple[str, str | None]]
"""A text, or a pair: for question answering a question and its context."""

LEAST_TEXTS = 20
MOST_HELD_OUT = 2000
"""Texts to compare on: with so many, an agreement of 99 % is known to within half a percent."""
SEED = 42


@dataclass
class UnlabelledTask:
    """Texts to calibrate on, and other texts to compare a model with its float model on.

    Attributes:
        kind: what the model does.
        labels: of its outputs by index.
        several: whether it gives a text several labels at once.
        tokenizer: the model's.
        max_length: the longest input in tokens.
        calibration: texts whose activations may set ranges.
        held_out: texts that are compared.
    """

    kind: TaskKind
    labels: tuple[str, ...]
    several: bool
    tokenizer: Tokenizer
    max_length: int
    calibration: Texts
    held_out: Texts
    metric: str = field(default="agreement", init=False)
    cut: CutTexts = field(default_factory=lambda: CutTexts(), init=False, compare=False)
    _reference: Sequence[Logits] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._compared = self._task(self.held_out)

    @property
    def has_pairs(self) -> bool:
        """Whether an input is a pair of texts."""
        return self.kind == "qa" or any(pair is not None for _, pair in (*self.calibration, *self.held_out))

    def calibration_features(self) -> list[Feature]:
        """Tokens of the texts to calibrate on."""
        return self._task(self.calibration).dev_features()

    def dev_features(self, limit: int | None = None) -> list[Feature]:
        """Tokens of the first `limit` held-out texts; of long contexts in windows."""
        features = self._compared.dev_features(limit)
        self.cut.counts.update(self._compared.cut.counts)
        return features

    def compare_with(self, reference: Sequence[Logits]) -> None:
        """Let logits be compared with these: the float model's, for all features of the held-out texts."""
        self._reference = reference

    def agreement(self, logits: Sequence[Logits], limit: int | None = None) -> Agreement:
        """Compare logits, for the features of the first `limit` held-out texts, with the float model's.

        Raises:
            InputError: there are no logits of the float model to compare with.
        """
        if self._reference is None:
            raise InputError("there is nothing to compare with: the float model has not answered yet")
        if self.kind == "qa":
            return answer_agreement(self._answers(self._reference, limit), self._answers(logits, limit))
        first, second = (np.stack(rows) for rows in (self._reference[:limit], logits))
        if is_regression(self.labels):
            return number_agreement(first[:, 0], second[:, 0])
        return label_agreement(first, second, several=self.several)

    def score(self, logits: Sequence[Logits]) -> dict[str, float]:
        """The agreement with the float model, and the mean difference of the scores."""
        found = self.agreement(logits)
        return {"agreement": found.share, "difference": found.mean_difference}

    def _task(self, texts: Texts) -> ClassifyTask | QATask:
        """Return what encodes these texts as those with labels are encoded; it is never asked for a score."""
        if self.kind == "qa":
            examples = [
                QAExample(str(i), question, context or "", (), 0) for i, (question, context) in enumerate(texts)
            ]
            return QATask([], examples, self.tokenizer, self.max_length)
        rows = tuple(TextExample(text, pair, 0) for text, pair in texts)
        return ClassifyTask(ClassifyData(self.labels, (), rows), self.tokenizer, self.max_length)

    def _answers(self, logits: Sequence[Logits], limit: int | None) -> list[Answer]:
        assert isinstance(self._compared, QATask)
        self._compared.dev_features(limit)
        return self._compared.answers(logits[: self._compared.windows])


def read_unlabelled(path: Path, columns: Columns) -> list[tuple[str, str | None]]:
    """Read texts, or pairs, in the order of their file: ``.txt`` has a text a line, tables have columns.

    Raises:
        InputError: with file and line, as :func:`q8core.tasks.tabular.read_table`; or fewer than 20 texts.
    """
    texts = read_texts(path, columns)
    if len(texts) < LEAST_TEXTS:
        raise InputError(f"{path} holds {len(texts)} texts; at least {LEAST_TEXTS} are needed to compare on")
    return texts


def divided(texts: Texts, calibration: int) -> tuple[Texts, Texts]:
    """Return texts to calibrate on, as many as asked for but at most half, and up to 2,000 others to compare on."""
    order = np.random.default_rng(SEED).permutation(len(texts)).tolist()
    count = min(calibration, len(texts) // 2)
    chosen = [texts[i] for i in order]
    return chosen[:count], chosen[count : count + MOST_HELD_OUT]
