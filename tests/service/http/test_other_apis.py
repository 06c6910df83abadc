"""Other servers' request shapes: each must give what /classify gives."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tokenizers import Encoding, Tokenizer

from q8core.tokenizer import encode_plain
from service.core import Service
from service.http.routes import tei
from service.http.routes.tei import Token
from tests.service.tiny_checkpoints import LABELS

TEXT, OTHER = "the film is good", "a very bad book"
LONG = "good " * 100


def classify(client: TestClient, inputs: Any, **parameters: Any) -> list[list[dict[str, Any]]]:
    answer = client.post("/classify", json={"inputs": inputs, "parameters": parameters})
    assert answer.status_code == 200, answer.text
    return answer.json()


def probs(row: list[dict[str, Any]]) -> list[float]:
    return [next(entry["score"] for entry in row if entry["label"] == label) for label in LABELS]


def test_vllms_classify(client: TestClient) -> None:
    for given, count in ((TEXT, 1), ([TEXT, OTHER], 2)):
        answer = client.post("/v1/classify", json={"model": "tiny-classify", "input": given, "user": "me"})
        body, rows = answer.json(), classify(client, given)
        assert answer.status_code == 200
        assert (body["object"], body["model"]) == ("list", "tiny-classify")
        assert body["id"] == f"classify-{answer.headers['x-request-id']}"
        assert [entry["index"] for entry in body["data"]] == list(range(count))
        for entry, row in zip(body["data"], rows, strict=True):
            assert (entry["label"], entry["num_classes"]) == (row[0]["label"], 3)
            assert entry["probs"] == pytest.approx(probs(row), abs=1e-6)
        tokens = int(answer.headers["x-compute-tokens"])
        assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
        assert tokens == 6 if count == 1 else tokens == 12


def test_vllms_options(client: TestClient) -> None:
    logits = client.post("/v1/classify", json={"input": TEXT, "use_activation": False}).json()["data"][0]["probs"]
    assert logits == pytest.approx(probs(classify(client, TEXT, function_to_apply="none")[0]), abs=1e-6)
    answer = client.post("/v1/classify", json={"input": LONG})
    assert (answer.status_code, answer.json()["error_type"]) == (422, "input_too_long")
    answer = client.post("/v1/classify", json={"input": LONG, "truncate_prompt_tokens": -1})
    assert answer.json()["data"][0]["probs"] == pytest.approx(probs(classify(client, LONG)[0]), abs=1e-6)
    answer = client.post("/v1/classify", json={"input": TEXT}, headers={"x-q8bert-backend": "fp32"})
    assert answer.headers["x-q8bert-backend"] == "fp32"


@pytest.mark.parametrize(
    ("inputs", "same", "flat"),
    [
        (TEXT, TEXT, True),
        ([TEXT], TEXT, True),
        ([TEXT, OTHER], {"text": TEXT, "text_pair": OTHER}, True),
        ([[TEXT]], [TEXT], False),
        ([[TEXT], [TEXT, OTHER]], [TEXT, [TEXT, OTHER]], False),
    ],
)
def test_teis_predict(client: TestClient, inputs: Any, same: Any, flat: bool) -> None:
    answer = client.post("/predict", json={"inputs": inputs})
    assert answer.status_code == 200, answer.text
    rows = [answer.json()] if flat else answer.json()
    for found, expected in zip(rows, classify(client, same), strict=True):
        assert [entry["label"] for entry in found] == [entry["label"] for entry in expected]
        assert probs(found) == pytest.approx(probs(expected), abs=1e-6)


def test_teis_options(client: TestClient) -> None:
    logits = client.post("/predict", json={"inputs": TEXT, "raw_scores": True}).json()
    assert probs(logits) == pytest.approx(probs(classify(client, TEXT, function_to_apply="none")[0]), abs=1e-6)
    assert client.post("/predict", json={"inputs": LONG}).json()["error_type"] == "input_too_long"
    cut = client.post("/predict", json={"inputs": LONG, "truncate": True})
    assert cut.headers["x-q8bert-truncated"] == "1"


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/classify", {"input": LONG}, "input has 102 tokens"),
        ("/v1/classify", {"input": [TEXT, LONG]}, "input[1] has 102 tokens"),
        ("/predict", {"inputs": LONG}, "inputs has 102 tokens"),
        ("/predict", {"inputs": [TEXT, LONG]}, "inputs has 107 tokens"),
        ("/predict", {"inputs": [[TEXT], [LONG]]}, "inputs[1] has 102 tokens"),
    ],
)
def test_a_text_that_is_too_long_is_told_in_the_routes_own_words(
    client: TestClient, path: str, body: dict[str, Any], message: str
) -> None:
    field, value = {"/v1/classify": ("truncate_prompt_tokens", -1), "/predict": ("truncate", True)}[path]
    answer = client.post(path, json=body)
    assert (answer.status_code, answer.json()["error_type"]) == (422, "input_too_long")
    assert answer.json()["error"].startswith(f"{message}, the model takes at most 64;")
    assert answer.json()["error"].endswith(f"set {field} to {json.dumps(value)}")
    assert client.post(path, json={**body, field: value}).status_code == 200


def test_tokenize(client: TestClient, service: Service) -> None:
    text = "Good 😀 films!"
    answer = client.post("/tokenize", json={"inputs": [text, ""]})
    assert answer.status_code == 200
    first, empty = answer.json()
    assert [token["text"] for token in (first[0], first[-1])] == ["[CLS]", "[SEP]"]
    assert [(token["special"], token["start"]) for token in (first[0], first[-1])] == [(True, None), (True, None)]
    for token in first[1:-1]:
        assert text[token["start"] : token["stop"]] == token["text"]
    assert [token["id"] for token in empty] == [first[0]["id"], first[-1]["id"]]
    inner = client.post("/tokenize", json={"inputs": text, "add_special_tokens": False}).json()[0]
    assert inner == first[1:-1]
    asked = client.post("/classify", json={"inputs": text})
    assert int(asked.headers["x-compute-tokens"]) == len(first)


@pytest.mark.parametrize(("special", "fit"), [(True, ["a b c d", ""]), (False, ["a b c d", "", "e f g h"])])
def test_tokenize_answers_as_many_tokens_as_the_queue_holds(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch, *, special: bool, fit: list[str]
) -> None:
    monkeypatch.setattr(service, "settings", service.settings.model_copy(update={"max_queue_tokens": 8}))
    answer = client.post("/tokenize", json={"inputs": fit, "add_special_tokens": special})
    assert sum(map(len, answer.json())) == 8
    answer = client.post("/tokenize", json={"inputs": [*fit, ","], "add_special_tokens": special})
    assert (answer.status_code, answer.json()["error_type"]) == (413, "too_many_tokens")


@pytest.mark.parametrize(
    ("inputs", "encoded"),
    [("a " * 65_537, 0), (["a"] * 22_000, 0), ([""] * 33_000, 0), ("," * 65_535, 1), (["a", "," * 65_535], 2)],
)
def test_tokenize_refuses_before_it_builds_tokens(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, inputs: Any, encoded: int
) -> None:
    built: list[object] = []
    calls: list[str] = []

    def noted(tokenizer: Tokenizer, text: str) -> Encoding:
        calls.append(text)
        return encode_plain(tokenizer, text)

    def token(**fields: object) -> object:
        built.append(fields)
        return Token(**fields)  # type: ignore[arg-type]

    monkeypatch.setattr(tei, "encode_plain", noted)
    monkeypatch.setattr(tei, "Token", token)
    answer = client.post("/tokenize", json={"inputs": inputs})
    assert (answer.status_code, answer.json()["error_type"]) == (413, "too_many_tokens")
    assert (len(calls), len(built)) == (encoded, 3 if encoded == 2 else 0)


@pytest.mark.parametrize(
    ("path", "body", "status", "error_type", "words"),
    [
        ("/v1/classify", {"input": []}, 400, "empty_input", "input is an empty list"),
        ("/v1/classify", {"input": TEXT, "model": "x"}, 404, "unknown_model", "tiny-classify"),
        ("/v1/classify", {"input": TEXT, "model": "tiny-qa"}, 404, "unknown_model", "tiny-classify"),
        ("/v1/classify", {"input": [1, 2]}, 422, "validation", "input[0]"),
        ("/v1/classify", {"input": {}}, 422, "validation", "a text or a list of texts is expected"),
        ("/v1/classify", {"inputs": TEXT}, 422, "validation", "unknown field 'inputs'; allowed: model, input"),
        ("/v1/classify", {"input": "a\ud800"}, 422, "validation", "surrogate"),
        ("/predict", {"inputs": []}, 400, "empty_input", "empty list"),
        ("/predict", {"inputs": [TEXT, TEXT, TEXT]}, 422, "validation", "at most 2 items"),
        ("/predict", {"inputs": [[TEXT], []]}, 422, "validation", "inputs[1]"),
        ("/predict", {"inputs": [[TEXT], TEXT]}, 422, "validation", "inputs[1]"),
        ("/predict", {"inputs": [TEXT, [TEXT]]}, 422, "validation", "inputs[1]"),
        ("/predict", {"inputs": 3}, 422, "validation", "a text, a pair"),
        ("/tokenize", {"inputs": []}, 400, "empty_input", "empty list"),
        ("/tokenize", {"inputs": TEXT, "model": "x"}, 404, "unknown_model", "tiny-classify, tiny-qa"),
    ],
)
def test_what_is_wrong_is_said_in_our_own_body(
    client: TestClient, path: str, body: Any, status: int, error_type: str, words: str
) -> None:
    content = json.dumps(body)  # escapes half an emoji, as a client may
    answer = client.post(path, content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error_type"]) == (status, error_type), answer.text
    assert words in answer.json()["error"]
    assert "|" not in answer.text
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_each_request_is_counted_once_as_its_task(client: TestClient, service: Service) -> None:
    def counted(code: int) -> float:
        metrics = service.metrics.registry
        labels = [{"task": task, "backend": "int8", "code": str(code)} for task in ("classify", "qa", "compare")]
        return sum(metrics.get_sample_value("q8bert_requests_total", one) or 0.0 for one in labels)

    before = counted(200)
    assert client.post("/v1/classify", json={"input": TEXT}).status_code == 200
    assert client.post("/predict", json={"inputs": TEXT}).status_code == 200
    assert counted(200) == before + 2
    assert client.post("/tokenize", json={"inputs": TEXT}).status_code == 200
    assert client.get("/v2/health/ready").status_code == 200
    assert counted(200) == before + 2


def test_open_inference_health_and_metadata(client: TestClient) -> None:
    assert client.get("/v2").json() == {
        "name": "q8bert",
        "version": client.get("/info").json()["version"],
        "extensions": [],
    }
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"live": True, "ready": True}
    assert client.get("/v2/models/tiny-qa/ready").json() == {"name": "tiny-qa", "ready": True}
    found = client.get("/v2/models/tiny-classify").json()
    assert (found["name"], found["platform"], len(found["versions"])) == ("tiny-classify", "q8bert", 1)
    assert found["outputs"][0] == {"name": "label", "datatype": "BYTES", "shape": [-1, 3]}
    questions = client.get("/v2/models/tiny-qa").json()
    assert [tensor["name"] for tensor in questions["inputs"]] == ["question", "context"]
    for path in ("/v2/models/none", "/v2/models/none/ready"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["error_type"]) == (404, "unknown_model")


def test_before_it_is_ready_it_says_so(app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.lifecycle import State

    service: Service = app.state.service
    monkeypatch.setattr(service.lifecycle, "_state", State.WARMING)
    assert client.get("/v2/health/live").status_code == 200
    for answer in (
        client.get("/v2/health/ready"),
        client.get("/v2/models/tiny-qa/ready"),
        client.post("/v1/classify", json={"input": TEXT}),
        client.post("/predict", json={"inputs": TEXT}),
    ):
        assert (answer.status_code, answer.json()["error_type"]) == (503, "not_ready")


def test_every_route_documents_its_errors(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path in ("/v1/classify", "/predict"):
        assert set(paths[path]["post"]["responses"]) == set(paths["/classify"]["post"]["responses"])
    for path, statuses in (("/v2/health/ready", {"503"}), ("/v2/models/{name}", {"401", "404", "422", "503"})):
        responses = paths[path]["get"]["responses"]
        assert set(responses) == {"200", *statuses}
        for status in statuses:
            assert responses[status]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorBody")
