"""Verdicts: one backend's answer to one input, and the difference between two backends' verdicts.

A verdict depends on those parameters of a request that change the question (windows, "no answer"), and not on those
that change how much of the answer the client sees (``top_k``, ``function_to_apply``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from q8core.tasks.examples import is_regression
from q8core.tasks.metrics import token_f1
from service.tasks import schemas

AnswerT = TypeVar("AnswerT", schemas.LabelScore, schemas.AnswerSpan)


@dataclass(frozen=True)
class LabelVerdict:
    """All labels of one text, best first."""

    scores: tuple[schemas.LabelScore, ...]

    @property
    def margin(self) -> float:
        """How much more likely the first label is than the second, 0 to 1; 1 if there is no second."""
        return _margin(self.scores)


@dataclass(frozen=True)
class SpanVerdict:
    """The best one or two spans of one question, best first, with different offsets."""

    spans: tuple[schemas.AnswerSpan, ...]

    @property
    def margin(self) -> float:
        """How much more likely the first span is than any other, 0 to 1.

        The other may overlap the first: two backends agree only if they find exactly the same span, and what they
        confuse most are neighbouring ends of one answer.
        """
        return _margin(self.spans)


Verdict = LabelVerdict | SpanVerdict


@dataclass(frozen=True)
class Comparison:
    """The difference between fp32's and int8's answers to one input."""

    agree: bool | None
    """Whether the best label, or the span, is the same; None for numbers, which only have a difference."""
    abs_diff: float
    """Largest difference of a label's score; difference of the best spans' scores, or of the numbers."""
    span_f1: float | None = None
    """F1 of the two spans' words, 0 to 1; None for labels and numbers."""


def compare_verdicts(fp32: Verdict, int8: Verdict) -> Comparison:
    """Compare both backends' verdicts on one input, which must be of the same kind."""
    if isinstance(fp32, LabelVerdict):
        assert isinstance(int8, LabelVerdict)
        return compare_scores(fp32.scores, int8.scores)
    assert not isinstance(int8, LabelVerdict)
    return compare_answers(fp32.spans[0], int8.spans[0])


def compare_scores(fp32: Sequence[schemas.LabelScore], int8: Sequence[schemas.LabelScore]) -> Comparison:
    """Compare all labels of one text, best first, or the numbers that a regression predicts."""
    scores = {entry.label: entry.score for entry in int8}
    return Comparison(
        agree=None if is_regression(list(scores)) else fp32[0].label == int8[0].label,
        abs_diff=max(abs(entry.score - scores[entry.label]) for entry in fp32),
    )


def compare_answers(fp32: schemas.AnswerSpan, int8: schemas.AnswerSpan) -> Comparison:
    """Compare the best spans of one question."""
    return Comparison(
        agree=(fp32.start, fp32.end) == (int8.start, int8.end),
        abs_diff=abs(fp32.score - int8.score),
        span_f1=token_f1(int8.answer, fp32.answer),
    )


def _margin(answers: Sequence[AnswerT]) -> float:
    return answers[0].score - answers[1].score if len(answers) > 1 else 1.0
