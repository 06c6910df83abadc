from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.client import AsyncClient, Client, ClientError, Retry
from service.client.retries import Attempts, parse_retry_after

URL = "http://q8bert.test"
LABELS = [[{"label": "good", "score": 0.9}, {"label": "bad", "score": 0.1}]]


class ScriptedServer:
    """Answers with one script entry after the other: a status with headers, or an exception."""

    def __init__(self, *script: tuple[int, dict[str, str]] | Exception) -> None:
        self.script = list(script)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        step = self.script.pop(0) if self.script else (200, {})
        if isinstance(step, Exception):
            raise step
        status, headers = step
        body = LABELS if status == 200 else {"error": "no", "error_type": "queue_full", "request_id": "r1"}
        return httpx.Response(status, json=body, headers={"x-request-id": "r1", **headers})


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that the clients would have made."""
    made: list[float] = []

    async def pause(seconds: float) -> None:
        made.append(seconds)

    monkeypatch.setattr("service.client.synchronous.time.sleep", made.append)
    monkeypatch.setattr("service.client.asynchronous.asyncio.sleep", pause)
    return made


def ask_sync(server: Callable[[httpx.Request], httpx.Response], **options: Any) -> Any:
    with Client(URL, transport=httpx.MockTransport(server), **options) as client:
        return client.classify("a film")


def ask_async(server: Callable[[httpx.Request], httpx.Response], **options: Any) -> Any:
    async def ask() -> Any:
        async with AsyncClient(URL, transport=httpx.MockTransport(server), **options) as client:
            return await client.classify("a film")

    return asyncio.run(ask())


both = pytest.mark.parametrize("ask", [ask_sync, ask_async])


@both
def test_a_typed_answer_with_what_the_headers_say(ask: Callable[..., Any]) -> None:
    server = ScriptedServer((200, {"x-q8bert-backend": "int8", "x-inference-time": "1.5", "x-compute-tokens": "7"}))
    found = ask(server, api_key="secret", backend="fp32")
    assert (found.label, found.score, found.labels[1].label) == ("good", 0.9, "bad")
    assert (found.meta.backend, found.meta.inference_ms, found.meta.tokens) == ("int8", 1.5, 7)
    assert (found.meta.request_id, found.meta.windows) == ("r1", None)
    [request] = server.requests
    assert request.headers["authorization"] == "Bearer secret"
    assert json.loads(request.content) == {"inputs": "a film", "backend": "fp32"}


@both
@pytest.mark.parametrize(
    "failure", [(429, {}), (503, {}), httpx.ConnectError("refused"), httpx.ReadError(""), httpx.ConnectTimeout("")]
)
def test_refusals_and_broken_connections_are_tried_again(
    ask: Callable[..., Any], pauses: list[float], failure: Any
) -> None:
    server = ScriptedServer(failure, failure)
    assert ask(server).label == "good"
    assert len(server.requests) == 3
    assert 0 <= pauses[0] <= 0.2
    assert 0 <= pauses[1] <= 0.4


@both
@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 500, 504])
def test_other_answers_are_not(ask: Callable[..., Any], pauses: list[float], status: int) -> None:
    server = ScriptedServer((status, {}))
    with pytest.raises(ClientError) as caught:
        ask(server)
    error = caught.value
    assert (error.status, error.error_type, error.request_id, error.attempts) == (status, "queue_full", "r1", 1)
    assert not pauses


@both
def test_a_slow_answer_is_not_asked_for_again(ask: Callable[..., Any], pauses: list[float]) -> None:
    server = ScriptedServer(httpx.ReadTimeout("slow"))
    with pytest.raises(ClientError) as caught:
        ask(server)
    assert (caught.value.status, caught.value.error_type) == (None, "timeout")
    assert not pauses


@both
def test_retry_after_is_waited_for_in_full(ask: Callable[..., Any], pauses: list[float]) -> None:
    assert ask(ScriptedServer((429, {"retry-after": "3"}))).label == "good"
    assert 3 <= pauses[0] <= 3.2


@both
def test_attempts_are_bounded(ask: Callable[..., Any], pauses: list[float]) -> None:
    server = ScriptedServer(*[(503, {"retry-after": "1"})] * 9)
    with pytest.raises(ClientError) as caught:
        ask(server, retry=Retry(attempts=3))
    error = caught.value
    assert (len(server.requests), len(pauses)) == (3, 2)
    assert (error.status, error.attempts, error.retry_after_s) == (503, 3, 1.0)
    assert str(error) == "no (503 queue_full, request r1, attempts: 3)"


@both
def test_a_retry_after_beyond_the_deadline_is_not_waited_for(ask: Callable[..., Any], pauses: list[float]) -> None:
    with pytest.raises(ClientError) as caught:
        ask(ScriptedServer((429, {"retry-after": "31"})))
    assert (caught.value.attempts, caught.value.retry_after_s) == (1, 31.0)
    assert not pauses


@both
def test_another_servers_answer_is_named(ask: Callable[..., Any]) -> None:
    for other in (httpx.Response(200, text="<html>"), httpx.Response(200, json={"a": 1})):
        with pytest.raises(ClientError, match="not one of a q8bert service") as caught:
            ask(lambda _, other=other: other)
        assert caught.value.error_type == "bad_answer"
    with pytest.raises(ClientError) as caught:
        ask(lambda _: httpx.Response(502, text="<html>"))
    assert (caught.value.status, caught.value.error_type) == (502, "http_error")


def test_pauses_double_up_to_the_cap_and_no_attempt_outlasts_the_deadline() -> None:
    now = [0.0]
    attempts = Attempts(Retry(attempts=9, deadline_s=20, base_s=1, cap_s=6), lambda: now[0], lambda low, high: high)
    found = []
    for _ in range(4):
        found.append(attempts.begin(timeout_s=15))
        now[0] += attempts.after_failure(httpx.ConnectError("refused"))
    assert now[0] == 2 + 4 + 6 + 6
    assert found == [15, 15, 14, 8]
    assert attempts.begin(15) == 2
    with pytest.raises(ClientError):
        attempts.after_failure(httpx.ConnectError("refused"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        ("Sun, 22 Nov 2026 12:00:30 GMT", 30.0),
        ("Sun, 22 Nov 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("-1", None),
        (None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, expected: float | None) -> None:
    assert parse_retry_after(value, datetime(2026, 11, 22, 12, tzinfo=UTC)) == expected


def test_impossible_patience_is_refused() -> None:
    with pytest.raises(ValueError, match="attempts is 0"):
        Retry(attempts=0)
    with pytest.raises(ValueError, match="deadline_s"):
        Retry(deadline_s=0)


def in_front_of(client: TestClient) -> Client:
    """The client in front of the real application, without a network between them."""

    def forward(request: httpx.Request) -> httpx.Response:
        answer = client.request(
            request.method, request.url.path, content=request.content, headers=dict(request.headers)
        )
        return httpx.Response(answer.status_code, content=answer.content, headers=dict(answer.headers))

    return Client("http://testserver", transport=httpx.MockTransport(forward))


@pytest.fixture
def real(client: TestClient) -> Iterator[Client]:
    with in_front_of(client) as own:
        yield own


def test_the_real_service_understands_every_call(real: Client, client: TestClient) -> None:
    alone = real.classify("a good film", top_k=2, backend="fp32")
    assert len(alone.labels) == 2
    assert (alone.meta.backend, alone.meta.model) == ("fp32", "tiny-classify")
    pair, other = real.classify_batch([("good", "bad"), "good"], function_to_apply="none")
    assert pair.labels != other.labels
    assert real.classify(("good", "bad"), function_to_apply="none").labels == pair.labels

    context = "ada wrote the book in paris"
    best = real.qa("who wrote it?", context)
    assert context[best.start : best.end] == best.answer
    top = real.qa_top("who wrote it?", context, 3)
    assert (len(top), top[0].answer) == (3, best.answer)
    assert len(real.qa_top("who wrote it?", context, 1)) == 1
    assert [a.answer for a in real.qa_batch([("who wrote it?", context)])] == [best.answer]

    both_labels, both_spans = real.compare("a good film"), real.compare_qa("who wrote it?", context)
    assert both_labels.shares["fp32"].answer.labels == real.classify("a good film", backend="fp32").labels
    assert both_spans.shares["int8"].answer.answer == best.answer
    assert both_spans.delta["span_f1"] >= 0
    assert (real.info().state, real.info().raw["service"]) == ("ready", "q8bert")


def test_the_real_services_errors_come_as_they_are(real: Client) -> None:
    with pytest.raises(ClientError) as caught:
        real.classify_batch([])
    assert (caught.value.status, caught.value.error_type) == (400, "empty_input")
    assert caught.value.request_id is not None
    with pytest.raises(ClientError) as caught:
        real.classify("x", backend="int4")
    assert (caught.value.status, caught.value.error_type) == (404, "unknown_backend")


@pytest.mark.parametrize("text", [("a", "b", "c"), ("a",), (), ["a", "b"], ("a", None), b"a", None])
def test_what_is_neither_text_nor_pair_is_refused(real: Client, text: Any) -> None:
    with pytest.raises(TypeError, match="tuple of two texts, is expected; for several texts call classify_batch"):
        real.classify(text)
    with pytest.raises(TypeError, match=r"is expected; see texts\[1\]"):
        real.classify_batch(["a", text])


def test_one_text_is_no_batch(real: Client) -> None:
    with pytest.raises(TypeError, match="list of texts"):
        real.classify_batch("one text")


def test_async_client_asks_the_same(app: FastAPI, client: TestClient) -> None:
    async def ask() -> tuple[Any, ...]:
        async with AsyncClient("http://testserver", transport=httpx.ASGITransport(app)) as own:
            return (
                await own.classify("a good film"),
                await own.classify_batch(["a good film"]),
                await own.qa("who?", "ada wrote it"),
                await own.qa_top("who?", "ada wrote it", 2),
                await own.qa_batch([("who?", "ada wrote it")]),
                await own.compare("a good film"),
                await own.compare_qa("who?", "ada wrote it"),
                await own.info(),
            )

    one, [same], best, top, [also], labels, spans, info = asyncio.run(ask())
    assert one.labels == same.labels == labels.shares["int8"].answer.labels
    assert best.answer == top[0].answer == also.answer == spans.shares["int8"].answer.answer
    assert info.state == "ready"


def test_the_client_imports_no_server() -> None:
    program = "import sys, json, service.client; print(json.dumps(sorted(sys.modules)))"
    end = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules = {name.partition(".")[0] for name in json.loads(end.stdout)}
    assert not modules & {"torch", "transformers", "tokenizers", "numpy", "fastapi", "pydantic", "uvicorn", "q8core"}
