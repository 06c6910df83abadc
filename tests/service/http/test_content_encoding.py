"""A compressed body is refused by its header, on every route that takes one."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

import httpx2 as httpx
import pytest
from fastapi.testclient import TestClient

from service.http.app import create_app
from service.settings import Settings
from tests.service.conftest import open_registry
from tests.service.running import running_server

KEY = "an-admin-key-for-tests"
PLAIN = json.dumps({"inputs": "good"}).encode()
ROUTES = {
    *("/classify", "/qa", "/question-answering", "/compare", "/predict", "/tokenize", "/v1/classify", "/admin/models")
}


@pytest.fixture(scope="module")
def with_admin(classify_folder: Path) -> TestClient:
    """Every route, with no engine behind it: what is refused here needs none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("Q8BERT_ADMIN_KEY", KEY)
        app = create_app(Settings(threads=1), open_registry(classify_folder))
    documented = {path for path, operations in app.openapi()["paths"].items() if "post" in operations}
    assert documented | {"/question-answering"} == ROUTES
    return TestClient(app, raise_server_exceptions=False, headers={"authorization": f"Bearer {KEY}"})


@pytest.mark.parametrize("path", sorted(ROUTES))
@pytest.mark.parametrize(
    "body",
    [PLAIN, gzip.compress(PLAIN, mtime=0), zlib.compress(PLAIN), b"", b"{"],
    ids=["plain", "gzip", "zlib", "empty", "broken"],
)
def test_no_route_takes_a_compressed_body(with_admin: TestClient, path: str, body: bytes) -> None:
    for coding in ("gzip", "br"):
        headers = {"content-type": "application/json", "content-encoding": coding}
        answer = with_admin.post(path, content=body, headers=headers)
        assert (answer.status_code, answer.json()["error_type"]) == (415, "unsupported_media_type")
        assert f"Content-Encoding: {coding};" in answer.json()["error"]
        assert answer.headers["accept-encoding"] == "identity"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]


def encoded(client: TestClient, *values: str) -> httpx.Response:
    headers = [("content-type", "application/json"), *(("Content-Encoding", value) for value in values)]
    return client.post("/classify", content=PLAIN, headers=headers)


@pytest.mark.parametrize(
    "values",
    [
        ("GZIP",),
        ("Br",),
        ("deflate",),
        ("x-gzip",),
        ("zstd",),
        ("unheard-of",),
        ("gzip, br",),
        ("identity, gzip",),
        ("gzip,",),
        ("identity", "gzip"),
        ("gzip;q=1",),
    ],
)
def test_every_coding_is_named_as_it_was_sent(client: TestClient, values: tuple[str, ...]) -> None:
    answer = encoded(client, *values)
    assert answer.status_code == 415
    assert f"Content-Encoding: {', '.join(values)};" in answer.json()["error"]


@pytest.mark.parametrize("values", [(), ("identity",), ("Identity",), ("identity, identity",), ("",), (" , ",)])
def test_what_means_no_encoding_is_answered(client: TestClient, values: tuple[str, ...]) -> None:
    assert encoded(client, *values).status_code == 200


def test_a_long_value_is_shortened(client: TestClient) -> None:
    error = encoded(client, "gzip, " * 500).json()["error"]
    assert len(error) < 200


def test_requests_without_a_body_are_not_asked(client: TestClient) -> None:
    for path in ("/livez", "/info", "/metrics"):
        assert client.get(path, headers={"content-encoding": "gzip"}).status_code == 200


def test_the_connection_serves_on_behind_an_unread_body(classify_folder: Path) -> None:
    app = create_app(Settings(threads=1), open_registry(classify_folder))
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    with running_server(app) as url, httpx.Client(base_url=url) as one:
        for _ in range(3):
            assert one.post("/classify", content=b"x" * 300_000, headers=headers).status_code == 415
            assert one.post("/classify", json={"inputs": "good"}).status_code == 200
