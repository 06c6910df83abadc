"""Several checkpoints of one task: requests choose by name, and batches never mix them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from service.client import AsyncClient, ClientError
from service.core import Service
from service.http.app import create_app
from service.lifecycle import State
from service.models.registry import ModelRegistry
from service.settings import Settings
from tests.service.client.test_client import in_front_of
from tests.service.tiny_checkpoints import make_checkpoint

TEXTS = ["good film", "a bad book", "who wrote it", "not very good"]


@pytest.fixture(scope="module")
def service(classify_folder: Path, qa_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Service:
    other = make_checkpoint(tmp_path_factory.mktemp("models") / "other", "classify", seed=7)
    registry = ModelRegistry.open(
        [classify_folder], ["fp32", "int8"], "fbgemm", 1, named=[("answers", qa_folder), ("other", other)]
    )
    return create_app(Settings(threads=1), registry).state.service


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    app = create_app(service.settings, service.registry)
    with TestClient(app, raise_server_exceptions=False) as client:
        assert app.state.service.lifecycle.wait_until_settled(240) is State.READY
        yield client


def classify(client: TestClient, **body: object) -> list[dict[str, object]]:
    answer = client.post("/classify", json=body)
    assert answer.status_code == 200, answer.text
    return [{entry["label"]: pytest.approx(entry["score"], abs=1e-6) for entry in row} for row in answer.json()]


def test_requests_choose_by_name_and_the_first_of_a_task_is_its_default(client: TestClient) -> None:
    first, other = (classify(client, inputs=TEXTS, model=name) for name in ("tiny-classify", "other"))
    assert first != other
    assert classify(client, inputs=TEXTS) == first
    for name in ("tiny-classify", "other"):
        answer = client.post("/classify", json={"inputs": "x", "model": name})
        assert answer.headers["x-q8bert-model"] == name
    body = {"question": "who wrote it?", "context": "ada wrote it"}
    assert client.post("/qa", json=body).json() == client.post("/qa", json={**body, "model": "answers"}).json()


def test_comparisons_choose_as_well(client: TestClient) -> None:
    for name in ("tiny-classify", "other"):
        found = client.post("/compare", json={"inputs": TEXTS[0], "model": name}).json()
        assert found["model"] == name
        own = classify(client, inputs=TEXTS[0], model=name, backend="int8")
        answer = found["results"]["int8"]["answer"]
        assert [{entry["label"]: entry["score"] for entry in row} for row in answer] == own
    assert client.post("/compare", json={"inputs": TEXTS[0]}).json()["model"] == "tiny-classify"


def test_the_client_names_models_in_every_call(client: TestClient) -> None:
    with in_front_of(client) as own:
        for name in ("tiny-classify", "other"):
            expected = classify(client, inputs=TEXTS, model=name, backend="int8")
            rows = own.classify_batch(TEXTS, model=name, backend="int8")
            alone = own.classify(TEXTS[0], model=name, backend="int8")
            both = own.compare(TEXTS[0], model=name)
            assert [{found.label: found.score for found in row.labels} for row in rows] == expected
            assert [{found.label: found.score for found in alone.labels}] == expected[:1]
            assert [{f.label: f.score for f in both.shares["int8"].answer.labels}] == expected[:1]
            assert {found.meta.model for found in (*rows, alone, both)} == {name}
        question = ("who wrote it?", "ada wrote it")
        spans = [
            own.qa(*question, model="answers"),
            *own.qa_top(*question, 2, model="answers"),
            *own.qa_batch([question], model="answers"),
            own.compare_qa(*question, model="answers"),
        ]
        assert {found.meta.model for found in spans} == {"answers"}
        calls: list[Callable[[], object]] = [
            lambda: own.classify("x", model="none"),
            lambda: own.classify_batch(["x"], model=""),
            lambda: own.compare("x", model="answers"),
            lambda: own.qa(*question, model="other"),
            lambda: own.qa_top(*question, 2, model="other"),
            lambda: own.qa_batch([question], model="other"),
            lambda: own.compare_qa(*question, model="other"),
        ]
        for call in calls:
            with pytest.raises(ClientError, match="loaded for") as caught:
                call()
            assert (caught.value.status, caught.value.error_type, caught.value.attempts) == (404, "unknown_model", 1)


def test_the_async_client_names_models_too(client: TestClient) -> None:
    async def ask(model: str) -> list[Any]:
        question = ("who wrote it?", "ada wrote it")
        async with AsyncClient("http://testserver", transport=httpx.ASGITransport(client.app)) as own:
            return await asyncio.gather(
                own.classify("x", model=model),
                own.classify_batch(["x"], model=model),
                own.compare("x", model=model),
                own.qa(*question, model=model),
                own.qa_top(*question, 2, model=model),
                own.qa_batch([question], model=model),
                own.compare_qa(*question, model=model),
                return_exceptions=True,
            )

    for name, right in (("other", slice(3)), ("answers", slice(3, 7)), ("none", slice(0))):
        found = asyncio.run(ask(name))
        answers = [one for row in found[right] for one in (row if isinstance(row, list) else [row])]
        assert {one.meta.model for one in answers} <= {name}
        del found[right]
        assert [(error.status, error.error_type) for error in found] == [(404, "unknown_model")] * len(found)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        (
            "/classify",
            {"inputs": "x", "model": "none"},
            "unknown model 'none'; loaded for classify: tiny-classify",
        ),
        ("/classify", {"inputs": "x", "model": "answers"}, "'answers' is for qa; loaded for classify: tiny-classify"),
        ("/compare", {"inputs": "x", "model": "answers"}, "'answers' is for qa"),
        ("/qa", {"question": "a", "context": "b", "model": "other"}, "'other' is for classify; loaded for qa: answers"),
        ("/qa", {"question": "a", "context": "b", "model": ""}, "unknown model ''"),
    ],
)
def test_unknown_names_and_other_tasks_are_404(
    client: TestClient, path: str, body: dict[str, object], words: str
) -> None:
    answer = client.post(path, json=body)
    assert (answer.status_code, answer.json()["error_type"]) == (404, "unknown_model")
    assert words in answer.json()["error"]


def test_concurrent_requests_get_their_own_models_answers(client: TestClient) -> None:
    names = ("tiny-classify", "other")
    alone = {(name, text): classify(client, inputs=text, model=name) for name in names for text in TEXTS}
    jobs = list(alone) * 6
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: classify(client, inputs=job[1], model=job[0]), jobs))
    assert found == [alone[job] for job in jobs]


def test_info_and_metrics_tell_the_models_apart(client: TestClient) -> None:
    models = client.get("/info").json()["models"]
    facts = {name: (model["task"], model["default"]) for name, model in models.items()}
    assert facts == {"tiny-classify": ("classify", True), "answers": ("qa", True), "other": ("classify", False)}
    text = client.get("/metrics").text
    for name in facts:
        assert text.count(f'q8bert_model_memory_bytes{{backend="int8",kind="weights",model="{name}"') == 1
        assert text.count('q8bert_model_info{backend="int8",bits="8-8-8",dtype="int8",isa=') == 3
    # requests and times add up per task and backend
    assert text.count('q8bert_request_duration_seconds_count{backend="int8",task="classify"}') == 1
