"""One slash at the end of a path changes nothing, and HEAD answers what GET answers, without the body."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.core import Service
from service.http.app import TASK_PATHS, create_app
from service.settings import Settings
from tests.service.conftest import open_registry
from tests.service.http.test_metrics_route import value
from tests.service.running import running_server

ADMIN_KEY, API_KEY = "an-admin-key-for-tests", "an-api-key-for-tests"
QA = {"question": "who?", "context": "by ada"}
BODIES = {
    "/classify": {"inputs": "good"},
    "/v1/classify": {"input": "good"},
    "/predict": {"inputs": "good"},
    "/tokenize": {"inputs": "good"},
    "/qa": QA,
    "/question-answering": QA,
    "/compare": QA,
}
PROBES = ("/livez", "/readyz", "/health", "/v2/health/live", "/v2/health/ready", "/metrics", "/info")
SEEN = (*PROBES, "/", "/docs", "/openapi.json", "/v2", "/v2/models/tiny-qa", "/v2/models/tiny-qa/ready", "/agreement")


def documented(app: FastAPI, method: str) -> set[str]:
    return {path for path, operations in app.openapi()["paths"].items() if method in operations}


def test_these_are_all_routes(app: FastAPI) -> None:
    assert documented(app, "post") | {"/question-answering"} == set(BODIES)
    assert {path.replace("{name}", "tiny-qa") for path in documented(app, "get")} <= set(SEEN)


@pytest.mark.parametrize("path", BODIES)
def test_a_slash_keeps_the_body_and_the_answer(client: TestClient, path: str) -> None:
    def shape(answer: httpx.Response) -> object:
        return answer.status_code, {name: type(value) for name, value in _flat(answer.json())}

    plain, slashed = (client.post(sent, json=BODIES[path], follow_redirects=False) for sent in (path, f"{path}/"))
    assert shape(slashed) == shape(plain)
    assert slashed.status_code == 200
    wrong = client.post(f"{path}/", json={})
    assert (wrong.status_code, wrong.json()["error_type"]) == (422, "validation")
    assert client.get(f"{path}/").status_code == 405
    assert client.post(f"{path}//", json=BODIES[path]).status_code == 404


def _flat(value: object) -> list[tuple[str, object]]:
    if isinstance(value, list):
        return [pair for one in value for pair in _flat(one)]
    return list(value.items()) if isinstance(value, dict) else []


@pytest.mark.parametrize("path", TASK_PATHS)
def test_a_slash_is_counted_as_the_same_task(client: TestClient, service: Service, path: str) -> None:
    backend = "fp32" if path == "/compare" else "int8"  # of a comparison both count
    labels = {"task": TASK_PATHS[path], "backend": backend, "code": "200"}
    before = value(client, "q8bert_requests_total", **labels)
    assert client.post(f"{path}/", json=BODIES[path]).headers["x-total-time"]
    assert value(client, "q8bert_requests_total", **labels) == before + 1


@pytest.mark.parametrize("path", SEEN[len(PROBES) + 1 :] + PROBES)
def test_a_slash_changes_nothing_for_get(client: TestClient, path: str) -> None:
    answer = client.get(f"{path}/", follow_redirects=False)
    assert (answer.status_code, answer.headers["content-type"]) == (200, client.get(path).headers["content-type"])


@pytest.mark.parametrize("path", SEEN)
@pytest.mark.parametrize("slash", ["", "/"])
def test_head_is_get_without_the_body(client: TestClient, path: str, slash: str) -> None:
    sent = f"{path.rstrip('/')}{slash}" or path
    got, head = client.get(sent), client.head(sent)
    assert (got.status_code, head.status_code, head.content) == (200, 200, b"")
    assert set(head.headers) == set(got.headers)
    assert head.headers["content-type"] == got.headers["content-type"]
    if path not in ("/metrics", "/info", "/agreement"):  # those show times
        assert head.headers["content-length"] == got.headers["content-length"]


def test_head_of_what_takes_no_get(client: TestClient) -> None:
    for path in BODIES:
        answer = client.head(path)
        assert (answer.status_code, answer.headers["allow"], answer.content) == (405, "POST", b"")
    assert client.head("/nothing").status_code == 404


def test_what_answers_get_names_head_too(client: TestClient) -> None:
    for path in PROBES:
        answer = client.post(path)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
        assert "GET, HEAD" in answer.json()["error"]


def test_head_of_a_probe_tells_that_it_is_not_ready(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service.lifecycle import State

    monkeypatch.setattr(app.state.service.lifecycle, "_state", State.WARMING)
    for path in ("/readyz", "/health", "/v2/health/ready"):
        assert client.head(path).status_code == 503
    assert client.head("/livez").status_code == 200


@pytest.fixture(scope="module")
def url(classify_folder: Path, qa_folder: Path) -> Iterator[str]:
    """A real server with both kinds of keys."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("Q8BERT_API_KEYS", f"sha256:{hashlib.sha256(API_KEY.encode()).hexdigest()}")
        patch.setenv("Q8BERT_ADMIN_KEY", ADMIN_KEY)
        app = create_app(Settings(threads=1), open_registry(classify_folder, qa_folder))
    with running_server(app) as url:
        yield url


def test_the_connection_goes_on_behind_a_head(url: str) -> None:
    """Asked byte by byte: a body behind the headers would be read as the next answer's beginning."""
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=240)) as connection:
        for path in ("/livez", "/readyz/", "/metrics", "/", "/docs"):
            connection.request("HEAD", path)
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, b"")
            assert int(answer.headers["content-length"]) > 0
            connection.request("GET", "/livez/")
            assert json.loads(connection.getresponse().read()) == {"status": "alive"}


def test_the_body_is_kept_back_from_any_server(app: FastAPI, client: TestClient) -> None:
    """Not by uvicorn or the test client, which drop it themselves."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "HEAD", "path": "/livez", "query_string": b"", "headers": [], "app": app}
    asyncio.run(app({**scope, "root_path": "", "http_version": "1.1"}, receive, send))
    assert [message.get("body") for message in sent] == [None, b""]


def test_keys_are_asked_for_behind_a_slash_as_well(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        for path in ("/classify/", "/admin/models/"):
            assert client.post(path, json={"inputs": "good"}).status_code == 401
        for method in ("GET", "HEAD"):
            assert client.request(method, "/info/").status_code == 401
            assert client.request(method, "/admin/models/").status_code == 401
            for path in ("/readyz/", "/livez/", "/v2/health/ready/", "/metrics/"):
                assert client.request(method, path).status_code == 200
        api, admin = ({"authorization": f"Bearer {key}"} for key in (API_KEY, ADMIN_KEY))
        assert client.post("/classify/", json={"inputs": "good"}, headers=api).status_code == 200
        assert client.get("/admin/models/", headers=admin).json() == client.get("/admin/models", headers=admin).json()
        assert client.head("/admin/models", headers=admin).status_code == 200
        assert client.delete("/admin/models/tiny-qa/", headers=admin).status_code == 200


def test_too_many_requests_are_refused_at_the_door_with_a_slash_too(classify_folder: Path) -> None:
    app = create_app(Settings(threads=1), open_registry(classify_folder))
    app.state.overload._limit = 0
    with running_server(app) as url, httpx.Client(base_url=url) as client:
        labels = {"task": "classify", "backend": "none", "code": "429"}
        for number, path in enumerate(("/classify/", "/v1/classify/?x=1", "/predict/"), 1):
            assert client.post(path, json={}).status_code == 429
            counted = app.state.service.metrics.registry.get_sample_value("q8bert_requests_total", labels)
            assert counted == number
        assert client.post("/classify//", json={}).status_code == 404
