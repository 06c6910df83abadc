"""Scores: accuracy for classification, exact match and F1 for SQuAD v1.1."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

from q8core.errors import InputError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def accuracy(predicted: Sequence[int], expected: Sequence[int]) -> float:
    """Share of equal labels, 0..1."""
    if not expected:
        raise InputError("no example to score")
    return sum(p == e for p, e in zip(predicted, expected, strict=True)) / len(expected)


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and extra spaces (SQuAD's own rule)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """1.0 when both are equal after normalization."""
    return float(normalize_answer(prediction) == normalize_answer(answer))


def token_f1(prediction: str, answer: str) -> float:
    """F1 over the multiset of normalized words (Rajpurkar et al. 2016)."""
    predicted, expected = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if not predicted or not expected:
        return float(predicted == expected)
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * common / (len(predicted) + len(expected))


def squad_scores(predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Exact match and F1 in percent; each question counts its best matching accepted answer.

    Raises:
        InputError: a question has no prediction.
    """
    missing = answers.keys() - predictions.keys()
    if missing or not answers:
        raise InputError(f"{len(missing)} of {len(answers)} questions have no prediction")
    em = sum(max(exact_match(predictions[key], a) for a in accepted) for key, accepted in answers.items())
    f1 = sum(max(token_f1(predictions[key], a) for a in accepted) for key, accepted in answers.items())
    return {"exact_match": 100 * em / len(answers), "f1": 100 * f1 / len(answers)}
