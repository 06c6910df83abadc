from __future__ import annotations

import math

import pytest
import torch
from fastapi.testclient import TestClient
from transformers import BertForSequenceClassification

from service.core import Service
from tests.service.tiny_checkpoints import LABELS

TEXTS = ["the film is good", "bad", "it was not a very good book", "", "who wrote it? ada, in paris."]


def scores(body: list[dict[str, float]]) -> dict[str, float]:
    return {str(row["label"]): row["score"] for row in body}


def test_one_text_gets_a_nested_list_sorted_by_score(client: TestClient) -> None:
    answer = client.post("/classify", json={"inputs": "the film is good"})
    assert answer.status_code == 200
    [row] = answer.json()
    assert {entry["label"] for entry in row} == set(LABELS)
    assert [entry["score"] for entry in row] == sorted((e["score"] for e in row), reverse=True)
    assert math.isclose(sum(entry["score"] for entry in row), 1.0, abs_tol=1e-9)


def test_scores_are_those_of_hugging_face(client: TestClient, service: Service) -> None:
    model = service.registry.models["tiny-classify"]
    reference = BertForSequenceClassification.from_pretrained(model.checkpoint.path).eval()
    answer = client.post("/classify", json={"inputs": TEXTS, "backend": "fp32"}).json()
    for text, row in zip(TEXTS, answer, strict=True):
        ids = [2, *model.tokenizer.encode(text, add_special_tokens=False).ids, 3]
        with torch.no_grad():
            expected = reference(torch.tensor([ids])).logits[0].softmax(-1)
        found = scores(row)
        assert [found[label] for label in LABELS] == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("backend", ["fp32", "int8"])
def test_alone_and_in_a_batch_of_32_mixed_lengths_the_answer_is_the_same(client: TestClient, backend: str) -> None:
    texts = [" ".join(["good", "bad", "film", "x"][n % 4] for _ in range(1 + n * 7 % 50)) for n in range(32)]
    together = client.post("/classify", json={"inputs": texts, "backend": backend}).json()
    for text, row in zip(texts, together, strict=True):
        [alone] = client.post("/classify", json={"inputs": text, "backend": backend}).json()
        assert scores(row) == pytest.approx(scores(alone), abs=1e-6)


def test_the_backends_differ_and_name_themselves(client: TestClient) -> None:
    answers = {b: client.post("/classify", json={"inputs": "a very bad film", "backend": b}) for b in ("fp32", "int8")}
    assert {b: a.headers["x-q8bert-backend"] for b, a in answers.items()} == {"fp32": "fp32", "int8": "int8"}
    assert answers["fp32"].json() != answers["int8"].json()


@pytest.mark.parametrize(
    ("body", "header", "expected"),
    [(None, None, "int8"), ("fp32", None, "fp32"), (None, "fp32", "fp32"), ("fp32", "fp32", "fp32")],
)
def test_backend_from_body_or_header(client: TestClient, body: str | None, header: str | None, expected: str) -> None:
    headers = {} if header is None else {"x-q8bert-backend": header}
    answer = client.post("/classify", json={"inputs": "good", "backend": body}, headers=headers)
    assert answer.headers["x-q8bert-backend"] == expected


def test_conflicting_backends_are_refused(client: TestClient) -> None:
    answer = client.post("/classify", json={"inputs": "x", "backend": "int8"}, headers={"x-q8bert-backend": "fp32"})
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")


def test_pairs_see_both_texts(client: TestClient) -> None:
    pairs = [["good film", "bad film"], ["good film", "a book"], ["good film", ""]]
    rows = [scores(row) for row in client.post("/classify", json={"inputs": pairs}).json()]
    assert rows[0] != rows[1] != rows[2]


def test_pairs_may_be_objects_as_in_hugging_faces_pipeline(client: TestClient) -> None:
    text, pair = {"text": "good film"}, {"text": "good film", "text_pair": "bad film"}
    mixed = [text, pair, "good film", ["good film", "bad film"], {**text, "text_pair": None}]
    single, paired, *rest = client.post("/classify", json={"inputs": mixed}).json()
    assert single != paired
    assert rest == [single, paired, single]
    assert client.post("/classify", json={"inputs": pair}).json() == [paired]
    assert client.post("/classify", json={"inputs": text}).json() == [single]


def test_top_k_and_functions(client: TestClient) -> None:
    def ask(**parameters: object) -> list[dict[str, float]]:
        return client.post("/classify", json={"inputs": "the film is good", "parameters": parameters}).json()[0]

    logits, softmax, sigmoid = (ask(function_to_apply=name) for name in ("none", "softmax", "sigmoid"))
    raw = torch.tensor([scores(logits)[label] for label in LABELS], dtype=torch.float64)
    assert [scores(softmax)[label] for label in LABELS] == pytest.approx(raw.softmax(-1).tolist(), abs=1e-9)
    assert [scores(sigmoid)[label] for label in LABELS] == pytest.approx(raw.sigmoid().tolist(), abs=1e-9)
    assert ask(top_k=1) == softmax[:1]
    assert ask(top_k=99) == softmax


def test_over_long_text_is_cut_and_counted(client: TestClient) -> None:
    inputs = ["good " * 500, "short", "bad " * 62, "bad " * 63]
    answer = client.post("/classify", json={"inputs": inputs})
    assert answer.status_code == 200
    assert answer.headers["x-q8bert-truncated"] == "2"  # 62 words and [CLS], [SEP] fit 64 positions
    again = client.post("/classify", json={"inputs": "good " * 62}).json()
    assert scores(answer.json()[0]) == pytest.approx(scores(again[0]), abs=1e-6)


def test_headers_tell_what_happened(client: TestClient) -> None:
    answer = client.post("/classify", json={"inputs": ["good", "bad film"]}, headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-q8bert-model"] == "tiny-classify"
    assert answer.headers["x-compute-tokens"] == "7"
    assert answer.headers["x-q8bert-truncated"] == "0"
    parts = [float(answer.headers[f"x-{name}-time"]) for name in ("tokenization", "queue", "inference")]
    assert 0 < sum(parts) <= float(answer.headers["x-total-time"])
    timings = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    assert list(timings) == ["tokenize", "queue", "infer", "postprocess", "total"]


def test_unsafe_request_id_is_replaced(client: TestClient) -> None:
    answer = client.post("/classify", json={"inputs": "x"}, headers={"x-request-id": "a b<script>"})
    assert answer.headers["x-request-id"].isalnum()
