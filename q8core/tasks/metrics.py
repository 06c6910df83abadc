"""Scores: accuracy, F1 and correlations for labelled texts, exact match and F1 for SQuAD v1.1.

Each score is a few lines, which tests compare with scikit-learn and SciPy. The service would have to install these two
large libraries for numbers that only training and evaluation need.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from q8core.errors import InputError

_Floats = npt.NDArray[np.float64]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def accuracy(predicted: Sequence[float], expected: Sequence[float]) -> float:
    """Return the share of equal labels, 0..1."""
    return _matches(predicted, expected) / len(expected)


def f1(predicted: Sequence[float], expected: Sequence[float]) -> float:
    """Return the F1 of class 1 against all others, 0..1; 0 if neither side has a 1."""
    _matches(predicted, expected)  # checks the inputs
    hits = sum(p == e == 1 for p, e in zip(predicted, expected, strict=True))
    ones = sum(p == 1 for p in predicted) + sum(e == 1 for e in expected)
    return 2 * hits / ones if ones else 0.0


def matthews(predicted: Sequence[float], expected: Sequence[float]) -> float:
    """Return Matthews' correlation coefficient for any number of classes, -1..1 (Gorodkin 2004, eq. 8).

    It is 0 if either side has only one class.
    """
    total, correct = len(expected), _matches(predicted, expected)
    guessed, true = Counter(predicted), Counter(expected)
    # integers: exact up to the root
    both = correct * total - sum(guessed[label] * count for label, count in true.items())
    spread_guessed = total**2 - sum(count**2 for count in guessed.values())
    spread_true = total**2 - sum(count**2 for count in true.values())
    product = spread_guessed * spread_true
    return both / math.sqrt(product) if product else 0.0


def pearson(predicted: Sequence[float], expected: Sequence[float]) -> float:
    """Return Pearson's correlation coefficient, -1..1; 0 if either side is constant, as in :func:`matthews`.

    Raises:
        InputError: no example, or a prediction that is NaN or infinite.
    """
    return _correlation(*_numbers(predicted, expected))


def spearman(predicted: Sequence[float], expected: Sequence[float]) -> float:
    """Return Spearman's rank correlation, -1..1: Pearson's of the ranks, where equal values have their mean rank.

    Raises:
        InputError: no example, or a prediction that is NaN or infinite.
    """
    x, y = _numbers(predicted, expected)
    return _correlation(_ranks(x), _ranks(y))


def _matches(predicted: Sequence[float], expected: Sequence[float]) -> int:
    if not expected:
        raise InputError("no example to score")
    return sum(p == e for p, e in zip(predicted, expected, strict=True))


def _numbers(predicted: Sequence[float], expected: Sequence[float]) -> tuple[_Floats, _Floats]:
    pairs = np.asarray(list(zip(predicted, expected, strict=True)), np.float64)
    if not len(pairs):
        raise InputError("no example to score")
    if not np.isfinite(pairs).all():
        raise InputError("a prediction is NaN or infinite: the model has diverged; try a smaller learning rate")
    return pairs[:, 0], pairs[:, 1]


def _ranks(values: _Floats) -> _Floats:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _correlation(x: _Floats, y: _Floats) -> float:
    if (x == x[0]).all() or (y == y[0]).all():
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    cosine = float(np.dot(x / np.linalg.norm(x), y / np.linalg.norm(y)))
    return max(-1.0, min(1.0, cosine))


# Each takes predictions and expected values: class indices, or numbers for the last two.
METRICS: dict[str, Callable[[Sequence[float], Sequence[float]], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "mcc": matthews,
    "pearson": pearson,
    "spearman": spearman,
}


def normalize_answer(text: str) -> str:
    """Return the text in lower case, without ASCII punctuation, English articles and extra spaces (SQuAD's rule)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """Return 1.0 if both are equal after normalization, else 0.0."""
    return float(normalize_answer(prediction) == normalize_answer(answer))


def token_f1(prediction: str, answer: str) -> float:
    """Return the F1 of the multisets of normalized words (Rajpurkar et al. 2016)."""
    predicted, expected = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if not predicted or not expected:
        return float(predicted == expected)
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * common / (len(predicted) + len(expected))


def squad_scores(predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return exact match and F1 in percent; each question counts its best matching accepted answer.

    Raises:
        InputError: a question has no prediction.
    """
    missing = answers.keys() - predictions.keys()
    if missing or not answers:
        raise InputError(f"{len(missing)} of {len(answers)} questions have no prediction")
    em = sum(max(exact_match(predictions[key], a) for a in accepted) for key, accepted in answers.items())
    f1 = sum(max(token_f1(predictions[key], a) for a in accepted) for key, accepted in answers.items())
    return {"exact_match": 100 * em / len(answers), "f1": 100 * f1 / len(answers)}
