"""Connections below the application: slow, endless and broken requests, and clients that read nothing."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx2 as httpx
import pytest

from service.core import Service
from service.http.app import create_app
from service.http.protocol import ConnectionLimits, guarded
from service.settings import Settings
from tests.service.conftest import open_registry
from tests.service.running import running_server, wait_until

HEAD = b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


class Served:
    def __init__(self, url: str, service: Service) -> None:
        self.url, self.service = url, service

    @contextmanager
    def connect(self) -> Iterator[socket.socket]:
        with closing(socket.create_connection(("127.0.0.1", int(self.url.rsplit(":", 1)[1])), timeout=240)) as made:
            yield made


@pytest.fixture(scope="module")
def served(classify_folder: Path) -> Iterator[Served]:
    settings = Settings(
        threads=1, header_timeout_s=0.4, body_timeout_s=0.4, header_limit=2048, keep_alive_s=1, payload_limit=1_000_000
    )
    app = create_app(settings, open_registry(classify_folder))
    with running_server(app) as url:
        yield Served(url, app.state.service)


@pytest.fixture(autouse=True)
def still_serving(served: Served) -> Iterator[None]:
    yield
    assert httpx.post(f"{served.url}/classify", json={"inputs": "good"}, timeout=240).status_code == 200
    wait_until(lambda: served.service.pipeline.in_flight.count() == 0)


def read_all(connection: socket.socket) -> bytes:
    found = b""
    while part := connection.recv(65536):
        found += part
    return found


def drip(connection: socket.socket, drop: bytes = b"x") -> None:
    """Send a little now and then until the server closes."""
    while True:
        connection.sendall(drop)
        with suppress(TimeoutError):
            if connection.recv(65536) == b"":
                raise ConnectionResetError


def ask_alive(connection: socket.socket) -> None:
    """One good request, answered to its last byte: head and body may come apart."""
    connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        answer += connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200")


def check(found: bytes, status: int, error_type: str) -> None:
    """One complete answer with the error body, after which the server has closed."""
    head, _, body = found.partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    assert lines[0].startswith(f"http/1.1 {status} ")
    fields = json.loads(body)
    assert (fields["error_type"], set(fields)) == (error_type, {"error", "error_type", "request_id"})
    assert f"x-request-id: {fields['request_id']}" in lines
    assert f"content-length: {len(body)}" in lines
    assert "connection: close" in lines


def test_a_body_that_does_not_arrive_is_ended(served: Served) -> None:
    count = served.service.metrics.registry.get_sample_value
    labels = {"task": "classify", "reason": "too_slow"}
    before = count("q8bert_rejected_total", labels)
    with served.connect() as connection:
        connection.sendall(HEAD + b"content-length: 100\r\n\r\n{")
        check(read_all(connection), 408, "body_too_slow")
    assert count("q8bert_rejected_total", labels) == before + 1


def test_a_body_that_drips_is_ended(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        connection.settimeout(0.05)
        found = b""
        try:
            while True:
                connection.sendall(b"1\r\nx\r\n")
                try:
                    found = connection.recv(65536)
                    break
                except TimeoutError:
                    continue
            connection.settimeout(240)
            found += read_all(connection)
        except ConnectionError:
            pass
        check(found, 408, "body_too_slow")


@pytest.mark.parametrize("sent", [b"GET /livez HT", b"GET /livez HTTP/1.1\r\nhost: x\r\nx-a: b", HEAD])
def test_headers_that_do_not_end_are_ended(served: Served, sent: bytes) -> None:
    with served.connect() as connection:
        connection.sendall(sent)
        check(read_all(connection), 408, "headers_too_slow")


def test_a_connection_without_a_request_is_closed(served: Served) -> None:
    with served.connect() as connection:
        assert read_all(connection) == b""


@pytest.mark.parametrize("answered_before", [False, True])
def test_blank_lines_do_not_keep_a_connection(served: Served, *, answered_before: bool) -> None:
    with served.connect() as connection:
        if answered_before:
            ask_alive(connection)
        connection.settimeout(0.05)
        with pytest.raises(ConnectionError):
            drip(connection, b"\r\n")


def test_headers_of_a_second_request_have_their_time_too(served: Served) -> None:
    with served.connect() as connection:
        ask_alive(connection)
        connection.sendall(b"GET /livez HTTP/1.1\r\nhost")
        check(read_all(connection), 408, "headers_too_slow")


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /livez HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 3000 + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x\r\n" + b"".join(b"x-%d: aaaaaaa\r\n" % n for n in range(300)) + b"\r\n",
        b"GET /livez?" + b"a" * 3000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 3000,  # and no end
    ],
)
def test_large_headers_are_refused(served: Served, sent: bytes) -> None:
    with served.connect() as connection:
        connection.sendall(sent)
        check(read_all(connection), 431, "headers_too_large")


def test_headers_within_the_limit_are_not(served: Served) -> None:
    answer = httpx.get(f"{served.url}/livez", headers={"x-a": "a" * 1500})
    assert answer.status_code == 200


CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
GOOD = b'11\r\n{"inputs":"good"}\r\n0\r\n'


def answer_to(connection: socket.socket, *pieces: bytes) -> tuple[str, dict[str, str]]:
    """Status line and headers of the one answer to a request in pieces, after which the connection serves on."""
    for piece in pieces:
        connection.sendall(piece)
        time.sleep(0.05)  # most likely it is read alone
    found = b""
    while not found.endswith(b"]]"):
        found += connection.recv(65536)
    ask_alive(connection)
    status, *lines = found.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines)


def test_trailers_are_no_headers(served: Served) -> None:
    with served.connect() as connection:
        trailers = b"x-q8bert-backend: none\r\nx-request-id: trailing\r\ncontent-type: text/plain\r\n\r\n"
        status, headers = answer_to(connection, CHUNKED, GOOD[:10], GOOD[10:], trailers)
    assert (status, headers["x-q8bert-backend"]) == ("HTTP/1.1 200 OK", "int8")
    assert headers["x-request-id"] != "trailing"


@pytest.mark.parametrize(
    "trailers",
    [
        b"x-a: " + b"a" * 3000 + b"\r\n\r\n",
        b"".join(b"x-%d: aaaaaaa\r\n" % n for n in range(300)) + b"\r\n",
        b"".join(b"x-%d: aaaaaaa\r\n" % n for n in range(300)),  # and no end
    ],
)
def test_large_trailers_are_refused(served: Served, trailers: bytes) -> None:
    with served.connect() as connection:
        connection.sendall(CHUNKED + GOOD + trailers)
        check(read_all(connection), 431, "headers_too_large")


@pytest.mark.parametrize("trailer", [b"x-a: aaaaaaa\r\n" * 10, b"a" * 100])
def test_trailers_that_do_not_end_are_refused(served: Served, trailer: bytes) -> None:
    found = b""
    with served.connect() as connection, suppress(ConnectionError):
        connection.sendall(CHUNKED + GOOD)
        for _ in range(6000):  # more than fits one read
            connection.sendall(trailer)
        found = read_all(connection)
    if found:  # where the last ones came too late to be read, the connection may end without the answer
        check(found, 431, "headers_too_large")


def test_chunks_are_no_trailers(served: Served) -> None:
    """A piece that ends with the size of a chunk ends as one where trailers begin."""
    content = json.dumps({"inputs": "good " * 4000}).encode()
    pieces = [
        CHUNKED + b"bb8\r\n" + content[:3000] + b"\r\n%x\r\n" % (len(content) - 3000),
        content[3000:9000],
        content[9000:] + b"\r\n0\r\nx-a: " + b"a" * 1500 + b"\r\n\r\n",
    ]
    with served.connect() as connection:
        status, _ = answer_to(connection, *pieces)
    assert status == "HTTP/1.1 200 OK"


def test_trailers_behind_an_answer_have_none_of_their_own(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(CHUNKED + b"f4300\r\n" + b"x" * 0xF4300 + b"\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 413")
        connection.sendall(GOOD + b"x-a: " + b"a" * 3000 + b"\r\n\r\n")
        assert read_all(connection) == b""


@pytest.mark.parametrize("answered_before", [False, True])
def test_an_address_that_is_none_is_refused(served: Served, *, answered_before: bool) -> None:
    with served.connect() as connection:
        if answered_before:
            ask_alive(connection)
        connection.sendall(b"GET http://x:99999/ HTTP/1.1\r\nhost: x\r\n\r\n")
        check(read_all(connection), 400, "bad_http")


@pytest.mark.parametrize("sent", [b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01"])
def test_what_is_no_http_has_the_error_body_as_well(served: Served, sent: bytes) -> None:
    with served.connect() as connection:
        connection.sendall(sent)
        check(read_all(connection), 400, "bad_http")


def test_the_rest_of_a_refused_body_cannot_drip_for_ever(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(HEAD + b"content-length: 2000000\r\n\r\n")
        assert b" 413 " in connection.recv(65536)
        connection.settimeout(0.05)
        with pytest.raises(ConnectionError):
            drip(connection)


def test_idle_connections_are_closed_and_used_ones_kept(served: Served) -> None:
    with served.connect() as connection:
        for _ in range(3):
            ask_alive(connection)
        assert read_all(connection) == b""


def test_an_answer_that_nobody_reads_is_given_up(classify_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = threading.Event()

    class Watched(guarded(ConnectionLimits(32_768, 10, 10, write_s=0.3))):  # type: ignore[misc]
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self.cycle is not None and self.scope["path"] == "/classify":
                lost.set()

    monkeypatch.setattr("service.hosts.single.guarded", lambda *_: Watched)
    app = create_app(Settings(threads=1, max_queue_tokens=10**6), open_registry(classify_folder))
    with running_server(app) as url, closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(240)
        connection.connect(("127.0.0.1", int(url.rsplit(":", 1)[1])))
        body = json.dumps({"inputs": [""] * 60_000}).encode()
        connection.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
        assert lost.wait(240)
        head, _, rest = read_all(connection).partition(b"\r\n\r\n")
        length = int(head.decode().lower().partition("content-length: ")[2].partition("\r\n")[0])
        assert len(rest) < length
        assert app.state.service.pipeline.in_flight.count() == 0
