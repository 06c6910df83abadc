"""Head and body of an answer leave in one piece, and nothing that was written is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import Mock

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from service.http.protocol import ConnectionLimits, guarded

Send = Callable[[dict[str, Any]], Awaitable[None]]
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
CHUNKED = {"type": "http.response.start", "status": 200, "headers": []}


def written(request: bytes, *messages: dict[str, Any], read: bool = False) -> list[bytes]:
    """Let an application send these messages, and return what the connection was given to write."""
    pieces: list[bytes] = []

    async def application(scope: Any, receive: Callable[[], Awaitable[Any]], send: Send) -> None:
        if scope["type"] == "http":
            if read:
                await receive()
            for message in messages:
                await send(message)

    async def run() -> None:
        config = Config(application, lifespan="off", log_config=None)
        config.load()
        limits = ConnectionLimits(header_bytes=1000, header_s=5, body_s=5)
        protocol = guarded(limits)(config, ServerState(), {}, asyncio.get_running_loop())
        transport = Mock()
        transport.get_extra_info.return_value = None
        transport.is_closing.return_value = False
        transport.write.side_effect = pieces.append
        transport.close.side_effect = lambda: pieces.append(b"CLOSED")
        protocol.connection_made(transport)
        protocol.data_received(request)
        await asyncio.gather(*protocol.tasks)
        protocol.connection_lost(None)

    asyncio.run(run())
    return pieces


def body(content: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": more}


GET, HEAD = b"GET / HTTP/1.1\r\n\r\n", b"HEAD / HTTP/1.1\r\n\r\n"


def test_an_answer_is_one_write() -> None:
    (answer, closed) = written(GET, START, body(b"ab"))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nab")
    assert closed == b"CLOSED"  # by the end of the connection


def test_what_streams_goes_on_at_once() -> None:
    first, second, end, _ = written(GET, CHUNKED, body(b"ab", more=True), body(b"c", more=True), body(b""))
    assert first.startswith(b"HTTP/1.1 200 OK\r\n")
    assert first.endswith(b"\r\n\r\n2\r\nab\r\n")
    assert (second, end) == (b"1\r\nc\r\n", b"0\r\n\r\n")


def test_the_answer_to_head_is_its_head() -> None:
    head, _ = written(HEAD, START, body(b""))
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert head.endswith(b"\r\n\r\n")


def test_a_client_that_asks_first_is_told_to_go_on() -> None:
    request = b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\nx"
    go_on, answer, _ = written(request, START, body(b"ab"), read=True)
    assert go_on == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert answer.endswith(b"ab")


def test_a_closed_connection_has_got_the_answer() -> None:
    answer, closed, _ = written(b"GET / HTTP/1.0\r\n\r\n", START, body(b"ab"))
    assert answer.endswith(b"ab")
    assert closed == b"CLOSED"


@pytest.mark.parametrize("request_", [GET, b"GET / HTTP/1.0\r\n\r\n"])
def test_a_head_without_its_body_still_leaves(request_: bytes) -> None:
    head, *_ = written(request_, START)  # uvicorn closes the connection of an incomplete answer
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
