"""Every wrong request has its documented status and a sentence, and leaves the service as it was."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from service.core import Service

QA = {"question": "who?", "context": "ada"}


@pytest.fixture(autouse=True)
def still_serving(client: TestClient, service: Service) -> Iterator[None]:
    yield
    assert client.post("/classify", json={"inputs": "good"}).status_code == 200
    assert service.pipeline.in_flight.count() == 0
    assert (service.queue.waiting_tokens(), service.queue.waiting_requests()) == (0, 0)


def check(answer: object, status: int, error_type: str, words: str) -> dict[str, object]:
    body = answer.json()  # type: ignore[attr-defined]
    assert (answer.status_code, body["error_type"]) == (status, error_type), body  # type: ignore[attr-defined]
    assert set(body) <= {"error", "error_type", "request_id", "details"}
    assert body["request_id"] == answer.headers["x-request-id"]  # type: ignore[attr-defined]
    assert words in body["error"]
    assert "Traceback" not in answer.text  # type: ignore[attr-defined]
    for internal in ("function-", "union", "|", "QAInput"):
        assert internal not in answer.text  # type: ignore[attr-defined]
    return body


CASES = [
    ("/classify", {"inputs": []}, 400, "empty_input", "empty list"),
    ("/classify", {"inputs": 5}, 422, "validation", "inputs is a number"),
    ("/classify", {"inputs": None}, 422, "validation", "inputs is null"),
    ("/classify", {"inputs": {"texts": "x"}}, 422, "validation", "inputs is an object of another shape"),
    ("/classify", {"inputs": [{"text": "x", "pair": "y"}]}, 422, "validation", "inputs[0] is an object of another"),
    ("/classify", {"inputs": {"text_pair": "x"}}, 422, "validation", "inputs is an object of another shape"),
    ("/classify", {"inputs": {"text": None}}, 422, "validation", "inputs.text is null"),
    ("/classify", {"inputs": [{"text": "x", "text_pair": 5}]}, 422, "validation", "inputs[0].text_pair is a number"),
    ("/classify", {"inputs": ["ok", 5]}, 422, "validation", "inputs[1] is a number"),
    ("/classify", {"inputs": [["a", 5]]}, 422, "validation", "inputs[0][1] is a number"),
    ("/classify", {"inputs": [["a", "b", "c"]]}, 422, "validation", "inputs[0] is a list of another shape"),
    ("/classify", {"inputs": "x", "topk": 1}, 422, "validation", "unknown field 'topk'; allowed: inputs, parameters"),
    ("/classify", {"inputs": "x", "parameters": {"k": 1}}, 422, "validation", "parameters: unknown field 'k'"),
    ("/classify", {"inputs": "x", "parameters": {"top_k": 0}}, 422, "validation", "parameters.top_k"),
    ("/classify", {"inputs": "x", "parameters": {"top_k": 1.0}}, 422, "validation", "parameters.top_k"),
    ("/classify", {"inputs": "x", "parameters": {"top_k": True}}, 422, "validation", "parameters.top_k"),
    ("/classify", {"inputs": "x", "parameters": {"function_to_apply": "relu"}}, 422, "validation", "softmax"),
    ("/classify", {"inputs": "x", "parameters": {"truncation": "no"}}, 422, "validation", "truncation"),
    ("/classify", {"inputs": "x", "parameters": []}, 422, "validation", "parameters"),
    ("/classify", {}, 422, "validation", "inputs"),
    ("/classify", [], 422, "validation", "body"),
    ("/classify", {"inputs": "x", "backend": "int4"}, 404, "unknown_backend", "'int4'; loaded: fp32, int8"),
    ("/classify", {"inputs": "x", "backend": ""}, 404, "unknown_backend", "''"),
    ("/classify", {"inputs": "x", "backend": 8}, 422, "validation", "backend"),
    (
        "/classify",
        {"inputs": ["ok", "good " * 70], "parameters": {"truncation": False}},
        422,
        "input_too_long",
        "inputs[1] has 72 tokens, the model takes at most 64",
    ),
    ("/qa", {"inputs": []}, 400, "empty_input", "empty list"),
    ("/qa", {"inputs": {**QA, "context": ""}}, 422, "validation", "the context is empty"),
    ("/qa", {"inputs": {**QA, "context": " \n"}}, 422, "validation", "the context is empty"),
    ("/qa", {"inputs": {**QA, "question": ""}}, 422, "validation", "the question is empty"),
    ("/qa", {"inputs": [QA, {**QA, "context": ""}]}, 422, "validation", "inputs[1]: the context is empty"),
    ("/qa", {"inputs": {"question": "who?"}}, 422, "validation", "context"),
    ("/qa", {"inputs": "who?"}, 422, "validation", "inputs: an object with question and context, or a list of them"),
    ("/qa", {"inputs": [QA, {"question": "x"}]}, 422, "validation", "inputs[1].context: Field required"),
    ("/qa", {"inputs": {**QA, "id": 1}}, 422, "validation", "inputs: unknown field 'id'; allowed: question, context"),
    ("/qa", {"question": "who?"}, 422, "validation", "both question and context"),
    ("/qa", {**QA, "inputs": QA}, 422, "validation", "either inputs"),
    ("/qa", {"inputs": QA, "parameters": {"max_seq_len": 4}}, 422, "validation", "max_seq_len"),
    ("/qa", {"inputs": QA, "parameters": {"top_k": 21}}, 422, "validation", "top_k"),
    ("/qa", {"inputs": QA, "parameters": {"doc_stride": -1}}, 422, "validation", "doc_stride"),
    ("/qa", {**QA, "context": "a " * 9000, "parameters": {"doc_stride": 58}}, 413, "too_many_tokens", "65536 tokens"),
    ("/qa", {"inputs": QA, "backend": "auto"}, 404, "unknown_backend", "threshold"),
    ("/compare", {}, 422, "validation", "both question and context"),
    ("/compare", {"question": "who?"}, 422, "validation", "both question and context"),
    ("/compare", {**QA, "inputs": "x"}, 422, "validation", "send either inputs"),
    ("/compare", {"inputs": ["x"]}, 422, "validation", "inputs: one text, or an object with question and context"),
    ("/compare", {"inputs": 5}, 422, "validation", "inputs: one text, or an object with question and context"),
    ("/compare", {"inputs": {"question": "who?"}}, 422, "validation", "inputs.context"),
    ("/compare", {"inputs": "x", "backend": "int8"}, 422, "validation", "unknown field 'backend'; allowed: inputs"),
    ("/compare", {**QA, "context": ""}, 422, "validation", "the context is empty"),
    ("/compare", {**QA, "question": " "}, 422, "validation", "the question is empty"),
    ("/compare", {**QA, "context": "a " * 50_000}, 413, "too_many_tokens", "65536 tokens"),
]


@pytest.mark.parametrize(("path", "body", "status", "error_type", "words"), CASES)
def test_wrong_body(client: TestClient, path: str, body: object, status: int, error_type: str, words: str) -> None:
    check(client.post(path, json=body), status, error_type, words)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/classify", {"inputs": ["a", *[5] * 900]}, "inputs"),
        ("/qa", {"inputs": [QA, *[5] * 900]}, "inputs[1]"),
        ("/v1/classify", {"input": ["a", *[5] * 900]}, "input[1]"),
        ("/predict", {"inputs": [["a"], *[5] * 900]}, "inputs[1]"),
        ("/predict", {"inputs": ["a", *[5] * 900]}, "inputs"),
        ("/tokenize", {"inputs": ["a", *[5] * 900]}, "inputs[1]"),
    ],
)
def test_of_a_list_of_wrong_items_the_first_is_told(client: TestClient, path: str, body: object, field: str) -> None:
    found = check(client.post(path, json=body), 422, "validation", field)
    assert [problem["field"] for problem in found["details"]] == [field]  # type: ignore[attr-defined]


RAW = [
    (b"", 400, "bad_json", "empty"),
    (b"{", 400, "bad_json", "character"),
    (b'{"inputs": "a"', 400, "bad_json", "character 14"),
    (b'{"inputs": "\xff"}', 400, "bad_json", "JSON"),
    (b"[" * 50_000, 400, "bad_json", "JSON"),
    (b'{"inputs": ' + b"9" * 5000 + b"}", 400, "bad_json", "JSON"),
    (b'{"inputs": NaN}', 422, "validation", "inputs is a number"),
    (b'{"inputs": "x", "parameters": {"top_k": Infinity}}', 422, "validation", "top_k"),
    (b'{"inputs": "\\ud83d"}', 422, "validation", "half a surrogate pair at character 0"),
    (
        b'{"inputs": ["ok", "x\\ude00"]}',
        422,
        "validation",
        "inputs[1]: the text holds half a surrogate pair at character 1",
    ),
    (b'{"inputs": [["ok", "\\ude00"]]}', 422, "validation", "inputs[0][1]: the text holds half a surrogate"),
    (b'{"inputs": "x", "\\ud83d": 1}', 422, "validation", "unknown field"),
    (b'{"inputs": "x", "backend": "\\ud83d"}', 422, "validation", "surrogate"),
    (b'"text"', 422, "validation", "body"),
    (b"null", 422, "validation", "body"),
]


@pytest.mark.parametrize(("content", "status", "error_type", "words"), RAW)
def test_wrong_bytes(client: TestClient, content: bytes, status: int, error_type: str, words: str) -> None:
    answer = client.post("/classify", content=content, headers={"content-type": "application/json"})
    check(answer, status, error_type, words)


def test_other_content_type(client: TestClient) -> None:
    body = json.dumps({"inputs": "x"})
    headers = {"content-type": "application/x-www-form-urlencoded"}
    check(client.post("/classify", content=body, headers=headers), 415, "unsupported_media_type", "application/json")


def test_unknown_path_and_method(client: TestClient) -> None:
    check(client.get("/nothing"), 404, "not_found", "/docs")
    check(client.post("/classify//", json={"inputs": "x"}), 404, "not_found", "/docs")
    answer = client.get("/classify")
    check(answer, 405, "method_not_allowed", "POST")
    assert answer.headers["allow"] == "POST"


def test_unknown_backend_in_the_header(client: TestClient) -> None:
    answer = client.post("/qa", json=QA, headers={"x-q8bert-backend": "gpu"})
    check(answer, 404, "unknown_backend", "'gpu'")


def test_answer_never_repeats_the_clients_text(client: TestClient) -> None:
    answer = client.post("/classify", json={"inputs": ["secret words", 7], "parameters": {"top_k": "secret words"}})
    assert answer.status_code == 422
    assert "secret" not in answer.text


@pytest.mark.parametrize("chunked", [False, True])
def test_large_body(client: TestClient, chunked: bool) -> None:
    body = json.dumps({"inputs": "x" * 200_000}).encode()
    pieces = (body[i : i + 9999] for i in range(0, len(body), 9999))
    answer = client.post("/classify", content=pieces if chunked else body, headers={"content-type": "application/json"})
    check(answer, 413, "body_too_large", "200000 bytes")


def test_more_tokens_than_the_queue(client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = type(service.queue._limits)(64, 100, 8)
    monkeypatch.setattr(service.queue, "_limits", limits)
    check(client.post("/classify", json={"inputs": ["good " * 60] * 2}), 413, "too_many_tokens", "124 tokens")
    check(client.post("/classify", json={"inputs": ["good"] * 60}), 413, "too_many_tokens", "at most 100")


def test_half_an_emoji_in_a_context(client: TestClient) -> None:
    content = b'{"inputs": {"question": "who?", "context": "ada \\ud83d"}}'
    answer = client.post("/qa", content=content, headers={"content-type": "application/json"})
    check(answer, 422, "validation", "inputs.context: the text holds half a surrogate pair at character 4")
