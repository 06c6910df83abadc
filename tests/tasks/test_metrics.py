from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score
from torchmetrics.text import SQuAD

from q8core.errors import InputError
from q8core.tasks.metrics import accuracy, squad_scores

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
