"""The client's time limits, held against a server that always sends another byte."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from service.client import AsyncClient, Client, ClientError, Retry
from service.client.retries import operation_limits

BYTES = 1000
PAUSE_S = 0.02
IN_THE_HEAD = b"HTTP/1.1 200 OK\r\nx-filler: "
IN_THE_BODY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % BYTES


def trickle(listener: socket.socket, beginning: bytes) -> int:
    """Answer one request with the beginning and single bytes; return how many were sent until the client left."""
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(beginning)
        for number in range(BYTES):
            try:
                connection.sendall(b" ")
            except OSError:
                return number
            time.sleep(PAUSE_S)
    return BYTES


def ask_sync(url: str, **options: Any) -> None:
    with Client(url, **options) as client:
        client.classify("a film")


def ask_async(url: str, **options: Any) -> None:
    async def ask() -> None:
        async with AsyncClient(url, **options) as client:
            await client.classify("a film")

    asyncio.run(ask())


@pytest.mark.parametrize(
    "options", [{"timeout_s": 0.5}, {"timeout_s": 60, "retry": Retry(deadline_s=0.5)}], ids=["timeout_s", "deadline_s"]
)
@pytest.mark.parametrize(
    ("ask", "beginning"),
    [(ask_sync, IN_THE_BODY), (ask_async, IN_THE_BODY), (ask_async, IN_THE_HEAD)],
    ids=["sync-body", "async-body", "async-head"],
)
def test_an_answer_that_trickles_is_given_up(
    ask: Callable[..., None], beginning: bytes, options: dict[str, Any]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as server:
        listener.settimeout(60)
        sent = server.submit(trickle, listener, beginning)
        with pytest.raises(ClientError, match="no answer in time") as caught:
            ask(f"http://127.0.0.1:{listener.getsockname()[1]}", **options)
        assert (caught.value.status, caught.value.error_type, caught.value.attempts) == (None, "timeout", 1)
        # it would have gone on for 20 s
        assert 0 < sent.result() < BYTES


def test_a_connection_that_does_not_come_is_known_before_the_attempt_is_over() -> None:
    limits = operation_limits(2.0)
    assert limits.connect is not None
    assert limits.connect < 2.0
    assert limits.read == limits.write == limits.pool == 2.0
