"""Requests that are refused where they arrive, because too many others are under way."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx2 as httpx
import pytest

from service.http.app import TASK_PATHS, create_app
from service.http.overload import Overload
from service.settings import Settings
from service.telemetry.metrics import create_metrics
from service.telemetry.recorder import RequestRecorder
from tests.service.conftest import open_registry
from tests.service.running import running_server

HEAD = b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def url(classify_folder: Path) -> Iterator[str]:
    """A server at whose door there are always too many requests under way."""
    app = create_app(Settings(threads=1, body_timeout_s=0.4), open_registry(classify_folder))
    service = app.state.service
    app.state.overload = Overload(0, TASK_PATHS, service.queue, RequestRecorder(TASK_PATHS, service.metrics))
    with running_server(app) as url:
        yield url


def connect(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=240)


def read_answer(connection: socket.socket) -> tuple[bytes, dict[str, str], dict[str, object]]:
    """Status line, headers and body of one answer, and not a byte more."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    status, *lines = head.decode().strip().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    body = b""
    while len(body) < int(headers["content-length"]):
        body += connection.recv(int(headers["content-length"]) - len(body))
    return status.encode(), headers, json.loads(body)


def test_refused_requests_have_the_usual_answer_and_are_counted(url: str) -> None:
    answer = httpx.post(f"{url}/classify", json={"inputs": "good"}, headers={"x-request-id": "mine"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (429, "mine")
    body = answer.json()
    assert (body.pop("error_type"), body.pop("request_id"), list(body)) == ("queue_full", "mine", ["error"])
    assert "x-total-time" in answer.headers
    counted = 'q8bert_requests_total{backend="none",code="429",task="classify"}'
    values = {line for line in httpx.get(f"{url}/metrics").text.splitlines() if line.startswith(counted)}
    assert len(values) == 1, values
    assert float(values.pop().split()[-1]) >= 1


def test_all_else_is_let_in(url: str) -> None:
    for path in ("/livez", "/readyz", "/info", "/metrics", "/"):
        assert httpx.get(url + path).status_code == 200, path


def test_the_connection_serves_on(url: str) -> None:
    with closing(connect(url)) as connection:
        for body in (b"content-length: 17\r\n\r\n" + b'{"inputs":"good"}', b"content-length: 0\r\n\r\n"):
            connection.sendall(HEAD + body)
            assert read_answer(connection)[0].startswith(b"HTTP/1.1 429")
        connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        assert read_answer(connection)[0].startswith(b"HTTP/1.1 200")


def test_the_answer_follows_the_whole_body(url: str) -> None:
    chunks = [b"transfer-encoding: chunked\r\n\r\n", b"5\r\n12345\r\n", b"0\r\n\r\n"]
    with closing(connect(url)) as connection:
        connection.sendall(HEAD)
        for chunk in chunks:
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):
                connection.recv(1)
            connection.settimeout(240)
            connection.sendall(chunk)
        assert read_answer(connection)[0].startswith(b"HTTP/1.1 429")


def test_a_body_that_does_not_come_ends_the_connection(url: str) -> None:
    with closing(connect(url)) as connection:
        connection.sendall(HEAD + b"content-length: 9\r\n\r\nabc")
        assert connection.recv(65536) == b""


@pytest.mark.parametrize("last", [b"POST /classify HTTP/1.0\r\n", HEAD + b"connection: close\r\n"])
def test_who_wants_to_leave_is_let_go(url: str, last: bytes) -> None:
    with closing(connect(url)) as connection:
        connection.sendall(last + b"content-length: 2\r\n\r\n{}")
        status, headers, _ = read_answer(connection)
        assert (status[9:12], headers["connection"]) == (b"429", "close")
        assert connection.recv(1) == b""


def test_pipelined_requests_are_answered_in_their_order(url: str) -> None:
    ids = [b"a", b"b", b"c", b"d"]
    with closing(connect(url)) as connection:
        connection.sendall(
            b"".join(
                (b"GET /livez HTTP/1.1\r\nhost: x\r\n" if name in b"bd" else HEAD + b"content-length: 0\r\n")
                + b"x-request-id: %s\r\n\r\n" % name
                for name in ids
            )
        )
        answers = [read_answer(connection) for _ in ids]
    assert [answer[1]["x-request-id"].encode() for answer in answers] == ids
    assert [answer[0][9:12] for answer in answers] == [b"429", b"200", b"400", b"200"]


@pytest.fixture(scope="module", params=["https://a.example", "*"])
def cross_origin_url(request: pytest.FixtureRequest, classify_folder: Path) -> Iterator[str]:
    """The same with an origin whose pages may read answers; /tokenize is not refused there."""
    app = create_app(Settings(threads=1, cors_allow_origin=(request.param,)), open_registry(classify_folder))
    app.state.overload._limit = 0
    with running_server(app) as url:
        yield url


@pytest.mark.parametrize("origin", ["https://a.example", "https://b.example", None])
def test_pages_of_other_origins_may_read_the_refusal_as_any_answer(cross_origin_url: str, origin: str | None) -> None:
    headers = {} if origin is None else {"origin": origin}
    refused = httpx.post(f"{cross_origin_url}/classify", json={"inputs": "good"}, headers=headers)
    answered = httpx.post(f"{cross_origin_url}/tokenize", json={"inputs": "good"}, headers=headers)
    assert (refused.status_code, answered.status_code) == (429, 200)
    assert "origin" in refused.headers["vary"].lower()
    names = ["access-control-allow-origin"]
    if "access-control-allow-origin" in answered.headers:
        names.append("access-control-expose-headers")
    for name in names:
        assert refused.headers.get(name) == answered.headers.get(name), name


def test_a_browser_may_ask_whether_it_may_ask(cross_origin_url: str) -> None:
    asks = {
        "origin": "https://a.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type",
    }
    answer = httpx.options(f"{cross_origin_url}/classify", headers=asks)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] in ("https://a.example", "*")


class FakeQueue:
    departures = 7

    def drain_seconds(self) -> float:
        return 1.5


@pytest.fixture
def full() -> tuple[Overload, FakeQueue, list[float]]:
    """With a body of 100 bytes just refused by the queue."""
    queue, clock, recorder = FakeQueue(), [50.0], RequestRecorder(TASK_PATHS, create_metrics([]))
    overload = Overload(10, TASK_PATHS, queue, recorder, clock=lambda: clock[0])  # type: ignore[arg-type]
    overload.note_full(100, queue.departures)
    return overload, queue, clock


def refuses(overload: Overload, size: int | None, target: bytes = b"/classify", under_way: int = 3) -> bool:
    headers = [(b"host", b"x")] if size is None else [(b"host", b"x"), (b"content-length", b"%d" % size)]
    return overload.refuses(b"POST", target, headers, under_way)


def test_a_full_queue_refuses_what_is_as_large_unread(full: tuple[Overload, FakeQueue, list[float]]) -> None:
    overload, queue, _ = full
    assert refuses(overload, 100)
    assert refuses(overload, 101, b"/qa/?a=b")
    assert not refuses(overload, 99), "a smaller one may fit"
    assert not refuses(overload, None), "nor one of unknown size"
    assert not refuses(overload, 101, b"/tokenize")
    assert refuses(overload, 99, under_way=10)
    overload.note_full(40, queue.departures)
    assert refuses(overload, 40)
    overload.note_full(80, queue.departures)
    assert refuses(overload, 40), "nothing has left since"


def test_it_asks_again_once_something_has_left(full: tuple[Overload, FakeQueue, list[float]]) -> None:
    overload, queue, _ = full
    queue.departures += 1
    assert not refuses(overload, 100)
    overload.note_full(200, queue.departures)
    assert not refuses(overload, 100), "what did not fit before may fit now"
    assert refuses(overload, 200)


def test_what_left_before_the_refusal_was_noted_counts(full: tuple[Overload, FakeQueue, list[float]]) -> None:
    overload, queue, _ = full
    refused_at = queue.departures
    queue.departures += 6  # the engine takes all that waited, while the event loop writes the refusal
    overload.note_full(100, refused_at)
    assert not refuses(overload, 100)


def test_it_asks_again_after_a_while(full: tuple[Overload, FakeQueue, list[float]]) -> None:
    overload, _, clock = full
    clock[0] += 0.06
    assert not refuses(overload, 100)
