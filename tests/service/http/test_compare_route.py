from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from q8core.engines import TokenBatch
from q8core.tasks.metrics import token_f1
from service.core import Service
from service.http.app import create_app
from service.lifecycle import State
from service.models.registry import ModelRegistry
from service.settings import Settings
from tests.service.conftest import open_registry
from tests.service.http.test_metrics_route import samples
from tests.service.tiny_checkpoints import make_checkpoint

TEXTS = ["the film is good", "bad", "", "it was not a very good book", "good " * 200, "😀 é"]
QUESTION = "who wrote it?"
CONTEXTS = ["The book is very good. It was written by Ada in Paris.", "😀😀 ada wrote it 😀", "it was ada. " * 60]
BACKENDS = ("fp32", "int8")


@contextmanager
def ready(*folders: Path, **settings: object) -> Iterator[tuple[TestClient, Service]]:
    chosen = Settings(threads=1, **settings)  # type: ignore[arg-type]
    app = create_app(chosen, open_registry(*folders, backends=chosen.backends))
    with TestClient(app, raise_server_exceptions=False) as client:
        assert app.state.service.lifecycle.wait_until_settled(240) is State.READY
        yield client, app.state.service


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_gets_what_classify_gives_on_each_backend(client: TestClient, text: str) -> None:
    found = client.post("/compare", json={"inputs": text}).json()
    alone = {b: client.post("/classify", json={"inputs": text, "backend": b}).json() for b in BACKENDS}
    assert (found["task"], found["model"]) == ("classify", "tiny-classify")
    assert {b: found["results"][b]["answer"] for b in BACKENDS} == alone
    scores = [{row["label"]: row["score"] for row in alone[b][0]} for b in BACKENDS]
    assert found["delta"] == {"max_abs_prob": max(abs(scores[0][label] - scores[1][label]) for label in scores[0])}
    assert found["agree"] == (alone["fp32"][0][0]["label"] == alone["int8"][0][0]["label"])


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("flat", [True, False])
def test_a_question_gets_what_qa_gives_on_each_backend(client: TestClient, context: str, flat: bool) -> None:
    pair = {"question": QUESTION, "context": context}
    found = client.post("/compare", json=pair if flat else {"inputs": pair}).json()
    alone = {b: client.post("/qa", json={**pair, "backend": b}).json() for b in BACKENDS}
    assert (found["task"], found["model"]) == ("qa", "tiny-qa")
    assert {b: found["results"][b]["answer"] for b in BACKENDS} == alone
    spans = [(alone[b]["start"], alone[b]["end"]) for b in BACKENDS]
    assert found["agree"] == (spans[0] == spans[1])
    assert found["delta"] == {"span_f1": token_f1(alone["int8"]["answer"], alone["fp32"]["answer"])}


def test_the_inputs_above_make_the_backends_agree_and_differ(client: TestClient) -> None:
    bodies = [{"question": QUESTION, "context": " ".join(words)} for words in _orders()]
    answers = [client.post("/compare", json=body).json() for body in bodies]
    assert {answer["agree"] for answer in answers} == {True, False}


def _orders() -> list[list[str]]:
    words = ["ada", "wrote", "the", "very", "good", "book", "in", "paris", "it", "was", "not", "bad"]
    return [words[n:] + words[:n] for n in range(len(words))]


def test_times_kernels_and_memory_of_each_backend(client: TestClient) -> None:
    answer = client.post("/compare", json={"inputs": "the film is good"})
    results = answer.json()["results"]
    info = client.get("/info").json()["models"]["tiny-classify"]["backends"]
    for backend in BACKENDS:
        facts = results[backend]
        assert set(facts) == {"answer", "queue_ms", "inference_ms", "kernel", "bits", "memory_bytes"}
        assert facts["kernel"] == info[backend]["kernel"]
        assert facts["bits"] == info[backend]["bits"]
        assert facts["memory_bytes"] == info[backend]["memory_bytes"]
        assert facts["queue_ms"] >= 0
        assert facts["inference_ms"] > 0
    ratio = results["fp32"]["inference_ms"] / results["int8"]["inference_ms"]
    assert answer.json()["speedup"] == pytest.approx(ratio, rel=0.02, abs=0.002)
    headers = answer.headers
    for name, field in (("x-queue-time", "queue_ms"), ("x-inference-time", "inference_ms")):
        assert float(headers[name]) == pytest.approx(sum(results[b][field] for b in BACKENDS), abs=0.01)
    timings = [part.split(";")[0] for part in headers["server-timing"].split(", ")]
    assert timings == ["tokenize", "queue", "infer", "postprocess", "total"]
    assert "x-q8bert-backend" not in headers
    assert (headers["x-q8bert-model"], headers["x-compute-tokens"]) == ("tiny-classify", "6")


def test_the_backends_take_turns_with_the_same_ids(classify_folder: Path) -> None:
    seen: list[tuple[str, list[int]]] = []

    class Recording:
        def __init__(self, engine: object, backend: str) -> None:
            self.engine, self.backend, self.reads = engine, backend, "first"

        def infer(self, batch: TokenBatch) -> object:
            seen.append((self.backend, batch.input_ids.tolist()))
            return self.engine.infer(batch)  # type: ignore[attr-defined]

    registry = open_registry(classify_folder)
    load = registry.load
    registry.load = lambda stop: {lane: Recording(e, lane.backend) for lane, e in load(stop).items()}  # type: ignore
    app = create_app(Settings(threads=1), registry)
    with TestClient(app) as client:
        assert app.state.service.lifecycle.wait_until_settled(240) is State.READY
        before = samples(client)
        answers = [client.post("/compare", json={"inputs": "the film is good"}).json() for _ in range(2)]
        after = samples(client)
    assert [backend for backend, _ in seen] == ["fp32", "int8", "int8", "fp32"]
    assert seen[0][1] == seen[1][1] == seen[2][1] == seen[3][1]
    assert [list(answer["results"]) for answer in answers] == [["fp32", "int8"]] * 2
    for backend in BACKENDS:  # the engines' counters know the task, the requests' the route
        batches = ("q8bert_batches_total", (("backend", backend), ("task", "classify")))
        assert after[batches] - before[batches] == 2


def test_each_backend_counts_its_share(client: TestClient) -> None:
    before = samples(client)
    assert client.post("/compare", json={"inputs": "good"}).status_code == 200
    after = samples(client)
    grown = {key for key, value in after.items() if value != before[key] and ("task", "compare") in key[1]}
    for backend in BACKENDS:
        labels = [("backend", backend), ("task", "compare")]
        total = ("q8bert_requests_total", tuple(sorted([*labels, ("code", "200")])))
        seconds = ("q8bert_request_duration_seconds_count", tuple(labels))
        assert after[total] - before[total] == after[seconds] - before[seconds] == 1
        stages = 0.0
        for stage in ("tokenize", "queue", "infer", "postprocess"):
            count = ("q8bert_stage_duration_seconds_count", tuple(sorted([*labels, ("stage", stage)])))
            assert after[count] - before[count] == 1
            key = (count[0].replace("_count", "_sum"), count[1])
            stages += after[key] - before[key]
        summed = ("q8bert_request_duration_seconds_sum", tuple(labels))
        assert after[summed] - before[summed] == pytest.approx(stages)
    assert {dict(labels)["backend"] for _, labels in grown} == set(BACKENDS)


@pytest.mark.parametrize(("body", "code"), [({"inputs": 1}, "422"), ({"question": "a", "context": ""}, "422")])
def test_refusals_are_counted_once_and_without_backend(client: TestClient, body: object, code: str) -> None:
    before = samples(client)
    assert client.post("/compare", json=body).status_code == int(code)
    after = samples(client)
    grown = {key: after[key] - before[key] for key in after if key[0] == "q8bert_requests_total"}
    key = ("q8bert_requests_total", (("backend", "none"), ("code", code), ("task", "compare")))
    assert {k: v for k, v in grown.items() if v} == {key: 1}


@pytest.mark.parametrize(("loaded", "missing"), [("int8", "fp32"), ("fp32", "int8")])
def test_one_backend_alone_cannot_compare(classify_folder: Path, loaded: str, missing: str) -> None:
    with ready(classify_folder, backends=(loaded,)) as (client, _):
        answer = client.post("/compare", json={"inputs": "good"})
        assert (answer.status_code, answer.json()["error_type"]) == (404, "unknown_backend")
        assert answer.json()["error"] == f"unknown backend '{missing}'; loaded: {loaded}"
        other = client.post("/compare", json={"question": "who?", "context": "ada"})
        assert (other.status_code, other.json()["error_type"]) == (404, "unknown_model")


def test_a_failing_second_share_fails_the_request_and_is_counted_there(classify_folder: Path) -> None:
    class Broken:
        def infer(self, batch: TokenBatch) -> object:
            raise RuntimeError("address 0xdead")

    registry = open_registry(classify_folder)
    load = registry.load
    registry.load = lambda stop: {  # type: ignore[method-assign]
        lane: engine if lane.backend == "fp32" else Broken()  # type: ignore[misc]
        for lane, engine in load(stop).items()
    }
    app = create_app(Settings(threads=1), registry)
    with TestClient(app, raise_server_exceptions=False) as client:
        service: Service = app.state.service
        assert service.lifecycle.wait_until_settled(240) is State.READY
        answer = client.post("/compare", json={"inputs": "good"})
        assert (answer.status_code, answer.json()["error_type"]) == (500, "internal")
        assert "0xdead" not in answer.text
        found = samples(client)
        totals = {
            dict(key[1])["backend"]: value
            for key, value in found.items()
            if key[0] == "q8bert_requests_total" and ("code", "500") in key[1] and ("task", "compare") in key[1]
        }
        assert totals == {"none": 0, "fp32": 0, "int8": 1}
        assert service.pipeline.in_flight.count() == 0
        assert service.queue.waiting_requests() == 0


def test_limits_and_deadlines_hold(classify_folder: Path) -> None:
    with ready(classify_folder, max_queue_tokens=10) as (client, _):
        answer = client.post("/compare", json={"inputs": "good " * 20})
        assert (answer.status_code, answer.json()["error_type"]) == (413, "too_many_tokens")
        assert client.post("/compare", json={"inputs": "good"}).status_code == 200
    with ready(classify_folder, request_timeout_s=1e-9) as (client, service):
        answer = client.post("/compare", json={"inputs": "good"})
        assert (answer.status_code, answer.json()["error_type"]) == (504, "deadline_exceeded")
        assert service.pipeline.in_flight.count() == 0


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """Two models of each task, whose labels are the same, and a classifier with others."""
    root = tmp_path_factory.mktemp("variants")
    named = [
        (name, make_checkpoint(root / name, "classify", seed=seed)) for seed, name in enumerate(("first", "second"))
    ]
    named += [(name, make_checkpoint(root / name, "qa", seed=seed)) for seed, name in enumerate(("asked", "again"))]
    named.append(("stars", make_checkpoint(root / "stars", "classify", labels=("1", "2"))))
    settings = Settings(threads=1)
    app = create_app(settings, ModelRegistry.open([], settings.backends, threads=1, named=named))
    with TestClient(app, raise_server_exceptions=False) as client:
        assert app.state.service.lifecycle.wait_until_settled(240) is State.READY
        yield client


@pytest.mark.parametrize(
    "names",
    [("first@fp32", "second@int8"), ("second@int8", "first@int8"), ("second@fp32", "second@int8")],
)
def test_variants_of_texts_get_what_classify_gives(several: TestClient, names: tuple[str, str]) -> None:
    for text in TEXTS:
        found = several.post("/compare", json={"inputs": text, "variants": names}).json()
        assert list(found["results"]) == list(names)
        alone = {name: _alone(several, "/classify", name, {"inputs": text}) for name in names}
        assert {name: found["results"][name]["answer"] for name in names} == alone
        scores = [{row["label"]: row["score"] for row in alone[name][0]} for name in names]
        assert found["delta"] == {"max_abs_prob": max(abs(scores[0][label] - scores[1][label]) for label in scores[0])}
        assert found["agree"] == (alone[names[0]][0][0]["label"] == alone[names[1]][0][0]["label"])
        assert found["model"] == names[0].split("@")[0]


def test_variants_of_questions_get_what_qa_gives(several: TestClient) -> None:
    names = ("asked@int8", "again@fp32")
    for context in CONTEXTS:
        pair = {"question": QUESTION, "context": context}
        found = several.post("/compare", json={**pair, "variants": names}).json()
        alone = {name: _alone(several, "/qa", name, pair) for name in names}
        assert {name: found["results"][name]["answer"] for name in names} == alone
        assert found["delta"] == {"span_f1": token_f1(alone[names[1]]["answer"], alone[names[0]]["answer"])}


def _alone(client: TestClient, path: str, variant: str, body: dict[str, str]) -> Any:
    model, backend = variant.split("@")
    return client.post(path, json={**body, "model": model, "backend": backend}).json()


def test_variants_of_two_models_are_encoded_each_and_count_for_their_backends(several: TestClient) -> None:
    before = samples(several)
    answer = several.post("/compare", json={"inputs": "good", "variants": ["first@int8", "second@int8"]})
    after = samples(several)
    assert answer.headers["x-q8bert-model"] == "first, second"
    stage = (("backend", "int8"), ("stage", "tokenize"), ("task", "compare"))
    times = [value[("q8bert_stage_duration_seconds_sum", stage)] for value in (before, after)]
    assert float(answer.headers["x-tokenization-time"]) == pytest.approx(500 * (times[1] - times[0]), abs=0.01)
    total = ("q8bert_requests_total", (("backend", "int8"), ("code", "200"), ("task", "compare")))
    assert after[total] - before[total] == 2
    timings = [part.split(";")[0] for part in answer.headers["server-timing"].split(", ")]
    assert timings == ["tokenize", "queue", "infer", "postprocess", "total"]


@pytest.mark.parametrize(
    ("variants", "status", "error_type", "says"),
    [
        (
            ["first@int8", "third@int8"],
            404,
            "unknown_model",
            "unknown model 'third'; loaded for classify: first, second",
        ),
        (["first@int8", "asked@int8"], 404, "unknown_model", "the model 'asked' is for qa"),
        (["first@int8", "second@int4"], 404, "unknown_backend", "unknown backend 'int4'; loaded: fp32, int8"),
        (["first@int8", "second"], 404, "unknown_model", "a variant is MODEL@BACKEND, loaded: first@fp32, first@int8"),
        (["first@int8", "second@auto"], 404, "unknown_backend", "unknown backend 'auto'; loaded: fp32, int8"),
        (["first@int8", "first@int8"], 422, "validation", "variants names 'first@int8' twice"),
        (["first@int8", "stars@int8"], 422, "validation", "answers NEGATIVE, NEUTRAL, POSITIVE, 'stars@int8' 1, 2"),
        (["first@int8"], 422, "validation", "variants"),
        (["first@int8"] * 3, 422, "validation", "variants"),
        ("first@int8", 422, "validation", "variants"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    several: TestClient, variants: object, status: int, error_type: str, says: str
) -> None:
    answer = several.post("/compare", json={"inputs": "good", "variants": variants})
    assert (answer.status_code, answer.json()["error_type"]) == (status, error_type)
    assert says in answer.json()["error"]


def test_model_and_variants_together_are_refused(several: TestClient) -> None:
    body = {"inputs": "good", "model": "first", "variants": ["first@int8", "second@int8"]}
    answer = several.post("/compare", json=body)
    assert (answer.status_code, "either model or variants" in answer.json()["error"]) == (422, True)
