from __future__ import annotations

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.core import Service
from service.errors import TooManyTokens
from service.tasks.encoding import QAWork
from service.tasks.schemas import QAInput, QAParameters

QUESTION = "who wrote it?"
CONTEXT = "The book is very good. It was written by Ada in Paris."


def ask(client: TestClient, context: str = CONTEXT, **body: object) -> object:
    answer = client.post("/qa", json={"inputs": {"question": QUESTION, "context": context}, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_one_answer_is_a_span_of_the_context(client: TestClient) -> None:
    found = ask(client)
    assert set(found) == {"answer", "score", "start", "end"}
    assert found["answer"] == CONTEXT[found["start"] : found["end"]] != ""
    assert 0 < found["score"] <= 1


def test_flat_form_and_alias_answer_the_same(client: TestClient) -> None:
    flat = {"question": QUESTION, "context": CONTEXT}
    assert client.post("/qa", json=flat).json() == ask(client)
    assert client.post("/question-answering", json={"inputs": flat}).json() == ask(client)


def test_several_answers_are_different_and_sorted(client: TestClient) -> None:
    found = ask(client, parameters={"top_k": 4})
    assert 1 < len(found) <= 4
    assert found[0] == ask(client)
    assert [a["score"] for a in found] == sorted((a["score"] for a in found), reverse=True)
    assert len({(a["start"], a["end"]) for a in found}) == len(found)


def test_a_list_of_inputs_gets_a_list_of_answers(client: TestClient) -> None:
    inputs = [{"question": QUESTION, "context": CONTEXT}, {"question": "where?", "context": "in paris"}]
    answers = client.post("/qa", json={"inputs": inputs}).json()
    assert [set(a) for a in answers] == [{"answer", "score", "start", "end"}] * 2
    assert answers[0] == ask(client)
    nested = client.post("/qa", json={"inputs": inputs, "parameters": {"top_k": 2}}).json()
    assert [isinstance(a, list) for a in nested] == [True, True]


def test_long_context_is_windowed(client: TestClient) -> None:
    context = CONTEXT * 40
    answer = client.post("/qa", json={"inputs": {"question": QUESTION, "context": context}})
    assert answer.status_code == 200
    assert int(answer.headers["x-q8bert-windows"]) > 10
    found = answer.json()
    assert found["answer"] == context[found["start"] : found["end"]] != ""


@pytest.mark.parametrize(
    "context", ["😀 ada wrote it 😀 in paris", "cafe\u0301 by ada 👩‍👩‍👧 in paris", "\u0000 ada \ufeff paris"]
)
def test_offsets_are_code_points(client: TestClient, context: str) -> None:
    found = ask(client, context)
    assert found["answer"] == context[found["start"] : found["end"]] != ""


def test_no_answer_is_an_empty_span(client: TestClient) -> None:
    found = ask(client, parameters={"handle_impossible_answer": True, "top_k": 20})
    empty = [a for a in found if a["answer"] == ""]
    assert len(empty) <= 1
    assert all((a["start"], a["end"]) == (0, 0) for a in empty)


def test_a_cut_question_is_reported(client: TestClient) -> None:
    body = {"inputs": {"question": "who " * 9, "context": CONTEXT}, "parameters": {"max_question_len": 9}}
    assert client.post("/qa", json=body).headers["x-q8bert-truncated"] == "0"
    body["parameters"] = {"max_question_len": 8}
    assert client.post("/qa", json=body).headers["x-q8bert-truncated"] == "1"


def test_smallest_answer_length_still_answers(client: TestClient) -> None:
    context = CONTEXT * 40
    found = ask(client, context, parameters={"max_answer_len": 1, "align_to_words": False})
    assert found["answer"] == context[found["start"] : found["end"]] != ""


@pytest.mark.parametrize("top_k", [1, 3])
def test_logits_whose_best_starts_and_ends_do_not_pair_still_answer(service: Service, top_k: int) -> None:
    item = QAInput(question=QUESTION, context="ada " * 45)
    parameters = QAParameters(max_answer_len=2, top_k=top_k)
    work = QAWork(service.registry.models["tiny-qa"], [item], parameters, listed=False, max_tokens=10**6)
    (only,) = work.encode().items
    table = np.zeros((only.tokens, 2), np.float32)
    table[-21:-1, 0] = table[-46:-26, 1] = 30.0
    found = work.join(work.answers([table]))
    answers = [found] if top_k == 1 else found
    assert len(answers) == top_k
    assert all(a.answer == item.context[a.start : a.end] != "" and a.score > 0 for a in answers)


def test_window_larger_than_the_model_is_refused(client: TestClient) -> None:
    body = {"inputs": {"question": QUESTION, "context": CONTEXT}, "parameters": {"max_seq_len": 65}}
    answer = client.post("/qa", json=body)
    assert answer.status_code == 422
    assert "at most 64" in answer.json()["error"]


@pytest.mark.parametrize("size", [20, 33, 64])
@pytest.mark.parametrize("stride", [0, 7, 12, 100, None])  # 12 is all but one token of the smallest window's room
@pytest.mark.parametrize("context", ["ada", "ada " * 40, "ada " * 300, "!" * 100], ids=["one", "some", "many", "signs"])
def test_expected_tokens_bound_the_real_ones(service: Service, size: int, stride: int | None, context: str) -> None:
    item = QAInput(question=QUESTION, context=context)
    parameters = QAParameters(max_seq_len=size, doc_stride=stride)
    model = service.registry.models["tiny-qa"]
    encoded = QAWork(model, [item], parameters, listed=False, max_tokens=10**9).encode()
    real = sum(work_item.tokens for work_item in encoded.items)
    assert encoded.windows is not None
    exact = encoded.windows * size
    assert real <= exact
    QAWork(model, [item], parameters, listed=False, max_tokens=exact).encode()
    with pytest.raises(TooManyTokens):
        QAWork(model, [item], parameters, listed=False, max_tokens=exact - 1).encode()
