"""Requests that offer another protocol beside HTTP/1.1 are answered as if they did not, over real sockets."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from service.http.app import create_app
from service.settings import Settings
from tests.service.conftest import open_registry
from tests.service.http.test_overload import connect, read_answer
from tests.service.running import running_server

OFFER = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
BODY = b'{"inputs":"good"}'
ALIVE = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"


def head(length: int, offer: bytes = OFFER) -> bytes:
    fields = b"host: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n" % length
    return b"POST /classify HTTP/1.1\r\n" + offer + fields + b"\r\n"


@pytest.fixture(scope="module")
def url(classify_folder: Path) -> Iterator[str]:
    app = create_app(Settings(threads=1), open_registry(classify_folder))
    with running_server(app) as url:
        yield url


@pytest.fixture
def connection(url: str, caplog: pytest.LogCaptureFixture) -> Iterator[socket.socket]:
    with closing(connect(url)) as connection:
        yield connection
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def check_answers(connection: socket.socket, *shown: str) -> None:
    """Just these answers come, each with a word of its body."""
    for word in shown:
        status, _, body = read_answer(connection)
        assert (status, word in str(body)) == (b"HTTP/1.1 200 OK", True), (status, body)


def check_kept(connection: socket.socket) -> None:
    """The connection serves on, and nothing was left over on it."""
    connection.sendall(ALIVE)
    check_answers(connection, "alive")
    connection.shutdown(socket.SHUT_WR)
    assert connection.recv(65536) == b""


@pytest.mark.parametrize("offer", [OFFER, b"upgrade: websocket\r\nConnection: keep-alive\r\nConnection: upgrade\r\n"])
def test_the_body_in_the_same_packet(connection: socket.socket, offer: bytes) -> None:
    connection.sendall(head(len(BODY), offer) + BODY)
    check_answers(connection, "label")
    check_kept(connection)


@pytest.mark.parametrize("size", [1, 7, 100])
def test_head_and_body_in_several_packets(connection: socket.socket, size: int) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sent = head(len(BODY))
    pieces = [sent[begin : begin + size] for begin in range(0, len(sent), size)]
    for piece in (*pieces, BODY[:5], BODY[5:]):
        connection.sendall(piece)
    check_answers(connection, "label")
    check_kept(connection)


def test_a_chunked_body(connection: socket.socket) -> None:
    connection.sendall(head(0).replace(b"content-length: 0", b"transfer-encoding: chunked"))
    connection.sendall(b"5\r\n" + BODY[:5] + b"\r\nc\r\n" + BODY[5:] + b"\r\n0\r\n\r\n")
    check_answers(connection, "label")
    check_kept(connection)


@pytest.mark.parametrize("together", [True, False])
def test_a_body_that_looks_like_a_request_is_none(connection: socket.socket, *, together: bool) -> None:
    inner = b"GET /info HTTP/1.1\r\nhost: x\r\n\r\n"
    for sent in [head(len(inner)) + inner] if together else [head(len(inner)), inner]:
        connection.sendall(sent)
    status, _, body = read_answer(connection)
    assert (status.split()[1], body["error_type"]) == (b"400", "bad_json")
    check_kept(connection)


def test_several_requests_in_one_packet(connection: socket.socket) -> None:
    one = head(len(BODY)) + BODY
    connection.sendall(one + ALIVE + one + one[:30])
    connection.sendall(one[30:])
    check_answers(connection, "label", "alive", "label", "label")
    check_kept(connection)


def test_an_offer_on_a_connection_that_shall_end(connection: socket.socket) -> None:
    connection.sendall(head(len(BODY), OFFER.replace(b"Upgrade,", b"close, Upgrade,")))
    connection.sendall(BODY)
    check_answers(connection, "label")
    assert connection.recv(65536) == b""


def test_http_1_0_may_not_offer_but_does(connection: socket.socket) -> None:
    connection.sendall((head(len(BODY)) + BODY).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    check_answers(connection, "label")
    assert connection.recv(65536) == b""


@pytest.mark.parametrize("target", [b"x:80", b"/livez"])
def test_there_are_no_tunnels(url: str, target: bytes) -> None:
    with closing(connect(url)) as connection:
        connection.sendall(b"CONNECT %s HTTP/1.1\r\nhost: x\r\n\r\n" % target + ALIVE)
        status, headers, body = read_answer(connection)
        assert (status.split()[1], headers["connection"], body["error_type"]) == (b"400", "close", "bad_http")
        assert connection.recv(65536) == b""


def test_what_is_wrong_behind_an_offer_is_refused(url: str) -> None:
    with closing(connect(url)) as connection:
        connection.sendall(head(0).replace(b"content-length: 0", b"transfer-encoding: chunked") + b"nonsense\r\n")
        status, _, body = read_answer(connection)
        assert (status.split()[1], body["error_type"]) == (b"400", "bad_http")
