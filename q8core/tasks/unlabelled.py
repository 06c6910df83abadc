"""Texts without labels, for comparing a quantized model's answers with its fp32 answers."""

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
"""Texts, or pairs of texts; for question answering, a question and its context."""

LEAST_TEXTS = 20
MOST_HELD_OUT = 2000
"""Most texts to compare on: this many measure an agreement of 99 % to within half a percentage point."""
SEED = 42


@dataclass
class UnlabelledTask:
    """Texts for calibration, and other texts for comparing a model with its float model.

    Attributes:
        kind: the model's task.
        labels: names of its outputs by index.
        several: whether it gives a text several labels at once.
        tokenizer: the model's.
        max_length: the longest input in tokens.
        calibration: texts whose activations set ranges.
        held_out: texts to compare answers on.
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
        """Return the tokens of the calibration texts."""
        return self._task(self.calibration).dev_features()

    def dev_features(self, limit: int | None = None) -> list[Feature]:
        """Return the tokens of the first `limit` held-out texts; long contexts are split into windows."""
        features = self._compared.dev_features(limit)
        self.cut.counts.update(self._compared.cut.counts)
        return features

    def compare_with(self, reference: Sequence[Logits]) -> None:
        """Set the logits to compare with: the float model's, for all features of the held-out texts."""
        self._reference = reference

    def agreement(self, logits: Sequence[Logits], limit: int | None = None) -> Agreement:
        """Compare logits, for the features of the first `limit` held-out texts, with the float model's.

        Raises:
            InputError: the float model's logits have not been set.
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
        """Return the agreement with the float model, and the mean difference of the scores."""
        found = self.agreement(logits)
        return {"agreement": found.share, "difference": found.mean_difference}

    def _task(self, texts: Texts) -> ClassifyTask | QATask:
        """Return a task that encodes these texts like labelled ones; it is not used for scoring."""
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
    """Read texts, or pairs, in file order: ``.txt`` has one text per line, tables have columns.

    Raises:
        InputError: as :func:`q8core.tasks.tabular.read_table`, with file and line; or there are fewer than 20 texts.
    """
    texts = read_texts(path, columns)
    if len(texts) < LEAST_TEXTS:
        raise InputError(f"{path} holds {len(texts)} texts; at least {LEAST_TEXTS} are needed to compare on")
    return texts


def divided(texts: Texts, calibration: int) -> tuple[Texts, Texts]:
    """Return random texts to calibrate on, `calibration` but at most half, and up to 2,000 others to compare on."""
    order = np.random.default_rng(SEED).permutation(len(texts)).tolist()
    count = min(calibration, len(texts) // 2)
    chosen = [texts[i] for i in order]
    return chosen[:count], chosen[count : count + MOST_HELD_OUT]
