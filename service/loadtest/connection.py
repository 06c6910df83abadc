"""HTTP/1.1 connections that take little CPU time, because the service under test needs the same CPUs.

A general client takes about a millisecond of CPU for a request; a small model answers in less.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass, field

import httptools

from service.loadtest.target import Target

# uvicorn closes connections that were idle for 5 s: an older one may be closing already
_IDLE_S = 3.0
_KEPT_BYTES = 2048
"""Bytes kept of an answer's body; enough for an error."""


@dataclass
class Reply:
    """An answer as it arrives; ``finished`` is when its last byte was read."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=lambda: dict[str, str]())
    body: bytearray = field(default_factory=bytearray)
    keep_alive: bool = False
    finished: float = 0.0


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.idle_since = time.perf_counter()
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._reply = Reply()
        self._done: asyncio.Future[Reply] | None = None

    @property
    def usable(self) -> bool:
        """Whether another request may be sent."""
        return (
            self._transport is not None
            and not self._transport.is_closing()
            and time.perf_counter() - self.idle_since < _IDLE_S
        )

    async def ask(self, payload: bytes) -> Reply:
        """Send a request and wait for the whole answer.

        Raises:
            OSError: the connection broke, or what came is not HTTP.
        """
        if self._transport is None:
            raise ConnectionResetError("the connection was closed")
        self._reply, self._parser = Reply(), httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(payload)
        try:
            return await self._done
        finally:
            self._done = None
            self.idle_since = time.perf_counter()

    def close(self) -> None:
        """Close at once, even with a request in flight."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Parse."""
        if self._parser is None:
            self.close()  # data without a request
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(OSError(f"the answer is not HTTP: {error}"))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request in flight."""
        self._transport = None
        self._fail(exc if isinstance(exc, OSError) else ConnectionResetError("closed before the answer"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Receive a header from the parser."""
        self._reply.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        """Receive a piece of the body from the parser."""
        self._reply.body += body[: _KEPT_BYTES - len(self._reply.body)]

    def on_message_complete(self) -> None:
        """Receive the end of the answer from the parser."""
        assert self._parser is not None
        reply, reply.finished = self._reply, time.perf_counter()
        reply.status, reply.keep_alive = self._parser.get_status_code(), self._parser.should_keep_alive()
        if self._done is not None and not self._done.done():
            self._done.set_result(reply)

    def _fail(self, error: OSError) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)


class Pool:
    """Connections to one target: as many as requests in flight, up to a limit; further requests wait."""

    def __init__(self, target: Target, limit: int) -> None:
        self._target = target
        self._room = asyncio.Semaphore(limit)
        self._idle: list[Connection] = []
        self._tls = ssl.create_default_context() if target.scheme == "https" else None

    async def connect(self) -> None:
        """Open a first connection, to learn whether anything listens.

        Raises:
            OSError: nothing does.
        """
        self._idle.append(await self._connect())

    async def ask(self, payload: bytes, timeout_s: float, sent: list[float]) -> Reply:
        """Send a request and wait for its answer.

        Args:
            payload: the whole request.
            timeout_s: longest time from sending to the last byte of the answer, connecting included.
            sent: its first element is set to the time of sending, so that the caller has it even if this raises.

        Raises:
            TimeoutError: no whole answer in time.
            OSError: no connection, or it broke.
        """
        async with self._room:
            sent[0] = time.perf_counter()
            connection: Connection | None = None
            try:
                async with asyncio.timeout(timeout_s):
                    connection = self._take_idle() or await self._connect()
                    reply = await connection.ask(payload)
            except BaseException:
                if connection is not None:
                    connection.close()
                raise
            if reply.keep_alive:
                self._idle.append(connection)
            else:
                connection.close()
            return reply

    def close(self) -> None:
        """Close the idle connections."""
        for connection in self._idle:
            connection.close()

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            connection.close()
        return None

    async def _connect(self) -> Connection:
        name = self._target.host if self._tls is not None else None
        _, connection = await asyncio.get_running_loop().create_connection(
            Connection, self._target.address, self._target.port, ssl=self._tls, server_hostname=name
        )
        return connection
