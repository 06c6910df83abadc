"""Agreement of two models, against what can be counted by hand or by SciPy's formulas."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, softmax

from q8core.tasks.agreement import Agreement, answer_agreement, label_agreement, number_agreement, wilson_interval
from q8core.tasks.qa import Answer


def random_logits(seed: int, labels: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(200, labels)).astype(np.float32) * 3


def test_labels_agree_where_the_first_is_the_same() -> None:
    a, b = random_logits(0), random_logits(0) + 0.4 * random_logits(1)
    found = label_agreement(a, b)
    assert (found.compared, found.agreed) == (200, int((a.argmax(1) == b.argmax(1)).sum()))
    differences = np.abs(softmax(a.astype(float), axis=1) - softmax(b.astype(float), axis=1)).max(axis=1)
    assert found.mean_difference == pytest.approx(differences.mean(), abs=1e-9)
    assert found.largest_difference == pytest.approx(differences.max(), abs=1e-9)
    assert 0 < found.share < 1


def test_several_labels_agree_where_all_of_them_do() -> None:
    a, b = random_logits(2), random_logits(2) + 0.3 * random_logits(3)
    found = label_agreement(a, b, several=True)
    assert found.agreed == int(((a > 0) == (b > 0)).all(axis=1).sum())
    assert found.mean_difference == pytest.approx(
        np.abs(expit(a.astype(float)) - expit(b)).max(axis=1).mean(), abs=1e-6
    )


def test_numbers_agree_within_a_tenth_of_their_deviation() -> None:
    a = np.array([0.0, 1.0, 2.0, 3.0])  # deviation 1.118
    found = number_agreement(a, a + np.array([0.11, -0.11, 0.12, 0.0]))
    assert found.agreed == 3
    assert found.largest_difference == pytest.approx(0.12)


def test_answers_agree_where_the_span_is_the_same() -> None:
    a = [Answer("x", 0.9, 3, 7), Answer("y", 0.5, 1, 2)]
    found = answer_agreement(a, [Answer("x", 0.7, 3, 7), Answer("yz", 0.4, 1, 3)])
    assert found == Agreement(2, 1, pytest.approx(0.15), pytest.approx(0.2))


def test_what_is_said_has_the_interval() -> None:
    text = str(Agreement(872, 867, 0.00617, 0.106))
    low, high = wilson_interval(867, 872)
    assert text == (
        f"99.43% of 872 answers are those of fp32 (95 % interval {low:.2%} to {high:.2%}), "
        "scores differ by 0.0062 on average, 0.1060 at most"
    )
