from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torchmetrics.text import SQuAD

from q8core.errors import InputError
from q8core.tasks.metrics import METRICS, accuracy, f1, matthews, pearson, spearman, squad_scores

ANSWERS = st.text(alphabet="aThe n.,-!?$10 ÄéX'\t", max_size=12)


@given(st.lists(st.tuples(ANSWERS, st.lists(ANSWERS, min_size=1, max_size=3)), min_size=1, max_size=5))
def test_squad_scores_agree_with_torchmetrics(rows: list[tuple[str, list[str]]]) -> None:
    predictions = {str(i): prediction for i, (prediction, _) in enumerate(rows)}
    answers = {str(i): tuple(accepted) for i, (_, accepted) in enumerate(rows)}
    oracle = SQuAD()
    oracle.update(
        [{"id": key, "prediction_text": text} for key, text in predictions.items()],
        [
            {"id": key, "answers": {"text": list(texts), "answer_start": [0] * len(texts)}}
            for key, texts in answers.items()
        ],
    )
    expected = {name: float(value) for name, value in oracle.compute().items()}
    assert squad_scores(predictions, answers) == pytest.approx(expected, abs=1e-4)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1))
def test_accuracy_agrees_with_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    predicted, expected = [p for p, _ in pairs], [e for _, e in pairs]
    assert accuracy(predicted, expected) == pytest.approx(accuracy_score(expected, predicted), abs=1e-12)


def test_a_question_without_prediction_is_an_error() -> None:
    with pytest.raises(InputError, match="1 of 2 questions"):
        squad_scores({"a": "x"}, {"a": ("x",), "b": ("y",)})


CLASSES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1)
BINARY = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1)
# on a grid: among floats of any size some lists are constant but for rounding, and SciPy warns of them
NUMBERS = st.lists(st.tuples(st.integers(-9999, 9999), st.integers(0, 25)), min_size=2)


@given(BINARY | CLASSES)
def test_matthews_agrees_with_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    predicted, expected = [p for p, _ in pairs], [e for _, e in pairs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of a single class
        oracle = matthews_corrcoef(expected, predicted)
    assert matthews(predicted, expected) == pytest.approx(oracle, abs=1e-12)


@given(BINARY)
def test_f1_agrees_with_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    predicted, expected = [p for p, _ in pairs], [e for _, e in pairs]
    assert f1(predicted, expected) == pytest.approx(f1_score(expected, predicted, zero_division=0.0), abs=1e-12)


@given(NUMBERS)
def test_correlations_agree_with_scipy(pairs: list[tuple[int, int]]) -> None:
    predicted, expected = [p / 1000 for p, _ in pairs], [e / 5 for _, e in pairs]
    assume(len(set(predicted)) > 1)
    assume(len(set(expected)) > 1)
    assert pearson(predicted, expected) == pytest.approx(pearsonr(predicted, expected).statistic, abs=1e-12)
    assert spearman(predicted, expected) == pytest.approx(spearmanr(predicted, expected).statistic, abs=1e-12)


@pytest.mark.parametrize("metric", [matthews, pearson, spearman])
def test_a_constant_prediction_has_no_correlation(metric: Callable[[list[float], list[float]], float]) -> None:
    assert metric([1, 1, 1], [0, 1, 1]) == 0.0
    assert metric([0, 1, 1], [1, 1, 1]) == 0.0
    assert metric([1], [1]) == 0.0


@pytest.mark.parametrize("metric", METRICS.values())
def test_nothing_to_score_and_lists_of_other_lengths_are_errors(
    metric: Callable[[list[float], list[float]], float],
) -> None:
    with pytest.raises(InputError, match="no example"):
        metric([], [])
    with pytest.raises(ValueError, match="argument 2 is longer"):
        metric([1, 0], [1, 0, 1])


def test_predictions_of_a_diverged_model_are_named() -> None:
    for metric in (pearson, spearman):
        with pytest.raises(InputError, match="diverged"):
            metric([1.0, float("nan")], [1.0, 2.0])
