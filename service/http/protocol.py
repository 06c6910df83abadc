"""uvicorn's HTTP protocol with limits that it lacks, so that clients cannot hold connections open for nothing.

uvicorn's keep-alive time-out starts with the first answer. Before that, and between the bytes of a request, a client
could take any time, and headers could have any size. An answer that the client does not read is given up as well.

uvicorn promises nothing about the internals of its protocol class, so `pyproject.toml` allows only releases that were
checked, and a test compares this list with the installed one. Of `HttpToolsProtocol` this file uses

- the attributes ``parser``, ``cycle`` (with ``transport``, ``response_started`` and ``response_complete``), ``tasks``,
  ``transport``, ``loop``, ``url``, ``headers``, ``scope``, ``expect_100_continue``, ``timeout_keep_alive_task``, and
  ``server_state`` (with ``default_headers``);
- the callbacks ``on_message_begin``, ``on_header``, ``on_headers_complete``, ``on_body``, ``on_message_complete``,
  ``on_response_complete`` and ``send_400_response``, besides those of asyncio's protocols.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from asyncio.events import TimerHandle
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.http.exchange import CLIENT_LEFT
from service.http.one_write import OneWrite
from service.http.overload import Overload
from service.http.request_parser import RequestParser

log = logging.getLogger(__name__)

# `Exchange` has the body's own time-out, and can answer; this one closes connections answered without reading.
_BODY_GRACE_S = 1.0
_TOO_MANY_REQUESTS = b"HTTP/1.1 429 Too Many Requests\r\n"


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of one connection.

    Attributes:
        header_bytes: size of the request line and all headers, and of all trailers.
        header_s: time for them to arrive, from the connection or from the first byte of a further request.
        body_s: time for the body to arrive.
        write_s: how long a client may read nothing while an answer is waiting.
    """

    header_bytes: int
    header_s: float
    body_s: float
    write_s: float = 30.0


class _Part(Enum):
    """The part of a request that a connection is waiting for."""

    REQUEST = auto()
    HEADERS = auto()
    BODY = auto()


class GuardedProtocol(HttpToolsProtocol):
    """One connection within `limits`; see `guarded`."""

    limits: ConnectionLimits
    overload: Overload | None = None

    _timer: TimerHandle | None = None
    _timed: _Part | None = None  # the part that the timer is for
    _write_timer: TimerHandle | None = None
    _part: _Part | None = None  # the part that is arriving
    _header_bytes = 0  # bytes of headers or trailers so far, including anything that arrived in one piece with them
    _trailer_bytes = 0  # bytes of complete trailers
    _trailing = False  # whether trailers may be arriving: after a chunk's size, with no body bytes so far
    _chunk_began = False
    _too_large = False
    _refusing = False

    @property
    def request_arrives(self) -> bool:
        """Whether a request has begun to arrive but is not complete."""
        return self._part is not None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start waiting for a request."""
        super().connection_made(transport)
        self.parser = RequestParser(self)  # type: ignore[assignment]
        self._client_left: asyncio.Future[None] = self.loop.create_future()
        self._time_the_rest()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers, and tell the requests under way."""
        self._disarm()
        self.resume_writing()
        self._client_left.set_result(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and refuse headers and trailers over the limit."""
        self._chunk_began = False
        super().data_received(data)
        self._time_the_rest()
        # a piece with a chunk's size in it may have anything before that
        if self._part is _Part.HEADERS or (self._trailing and not self._chunk_began):
            self._header_bytes += len(data)
            if self._header_bytes > self.limits.header_bytes and not self.transport.is_closing():
                self._refuse(431, "headers_too_large", self._size_message())

    def on_message_begin(self) -> None:
        """Start counting the bytes of the headers, and their time."""
        super().on_message_begin()
        self.scope["extensions"] = {CLIENT_LEFT: self._client_left}  # type: ignore[typeddict-item]
        self._part, self._timed, self._header_bytes = _Part.HEADERS, None, 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; of a trailer, which is not one (RFC 9110, section 6.5.1), only count the size."""
        if self._part is _Part.HEADERS:
            super().on_header(name, value)
            return
        self._trailer_bytes += len(name) + len(value) + 4
        if self._trailer_bytes > self.limits.header_bytes:
            self._too_large = True
            raise ValueError("trailers too large")

    def on_headers_complete(self) -> None:
        """Pass the request on if its headers are within the limit."""
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > self.limits.header_bytes:
            self._too_large = True
            raise ValueError("headers too large")  # stops the parser, and send_400_response answers
        assert self.parser is not None
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise ValueError("no tunnels")  # what follows is not HTTP
            return  # the parser calls again, without the Upgrade header
        # pipelined after an unfinished answer, or with Expect: 100-continue, it goes through the application
        self._refusing = (
            self.overload is not None
            and not self._answering
            and not self.expect_100_continue
            and self.overload.refuses(self.parser.get_method(), self.url, self.headers, len(self.tasks))
        )
        if not self._refusing:
            super().on_headers_complete()
            if self.scope["method"] != "HEAD":  # for its answer uvicorn writes no body, not even an empty one
                self.cycle.transport = OneWrite(self.transport)  # type: ignore[assignment]
        self._part = _Part.BODY

    def on_chunk_header(self) -> None:
        """Expect trailers, which follow the size of the last chunk in place of a body."""
        self._trailing = self._chunk_began = True
        self._header_bytes = self._trailer_bytes = 0

    def on_chunk_complete(self) -> None:
        """Expect no more trailers."""
        self._trailing = False

    def on_body(self, body: bytes) -> None:
        """Pass the body on, unless the request is refused anyway."""
        self._trailing = False
        if not self._refusing:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Answer a refused request."""
        assert self.parser is not None
        if self.parser.should_upgrade():
            return
        self._part = None
        if self._refusing:
            self._answer_overload()
        else:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer invalid HTTP, or headers over the limit, with the service's error body."""
        if self._too_large:
            self._refuse(431, "headers_too_large", self._size_message())
        else:
            self._refuse(400, "bad_http", "this is no valid HTTP/1.1 request")

    def pause_writing(self) -> None:
        """Start the timer of a client that does not read."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.limits.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the timer of a client that does not read."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def _headers_overdue(self) -> None:
        if self._answering:  # a slow pipelined request must not cut off the answer before it
            self._arm(self.limits.header_s, self._headers_overdue)
        elif self._part is _Part.HEADERS:
            message = f"the headers did not arrive within {self.limits.header_s:g} s (--header-timeout-s)"
            self._refuse(408, "headers_too_slow", message)
        else:
            self.transport.close()

    def _body_overdue(self) -> None:
        if not self._answering:
            self.transport.close()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison]

    def _size_message(self) -> str:
        what = "trailers" if self._part is _Part.BODY else "request line and headers"
        return f"{what} take more than {self.limits.header_bytes} bytes (--header-limit)"

    def _answer_overload(self) -> None:
        assert self.overload is not None
        assert self.parser is not None
        method = self.parser.get_method().decode("ascii")
        body, headers = self.overload.answer(method, self.url, self.headers)
        keep = self.parser.should_keep_alive()
        if not keep:
            headers.append((b"connection", b"close"))
        head = (b"%s: %s\r\n" % header for header in (*self.server_state.default_headers, *headers))
        self.transport.write(b"".join((_TOO_MANY_REQUESTS, *head, b"\r\n", body)))
        if keep:
            self.on_response_complete()
        else:
            self.transport.close()

    def _refuse(self, status: int, error_type: str, message: str) -> None:
        """Send an error unless the application has begun to answer, and close the connection."""
        self._disarm()
        if self._part is _Part.BODY and not self._refusing and self.cycle.response_started:
            self.transport.close()
            return
        request_id = uuid.uuid4().hex
        log.debug("refused a connection: %d %s %s", status, error_type, request_id)
        body = json.dumps({"error": message, "error_type": error_type, "request_id": request_id}).encode()
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _time_the_rest(self) -> None:
        """Start a timer for what has not arrived; a request in one piece, which most are, needs none."""
        awaited = self._part
        if awaited is None and not self._answering and self.timeout_keep_alive_task is None:
            awaited = _Part.REQUEST  # a new connection, or bytes that start no request but stopped the keep-alive timer
        if awaited is None or self.transport.is_closing():
            self._disarm()
        elif self._timed is not awaited:
            if awaited is _Part.BODY:
                self._arm(self.limits.body_s + _BODY_GRACE_S, self._body_overdue)
            else:
                self._arm(self.limits.header_s, self._headers_overdue)
            self._timed = awaited

    def _arm(self, seconds: float, overdue: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, overdue)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = self._timed = None


def guarded(limits: ConnectionLimits, overload: Overload | None = None) -> type[GuardedProtocol]:
    """Return the protocol class with these limits, for uvicorn's ``http`` option."""
    return type("BoundProtocol", (GuardedProtocol,), {"limits": limits, "overload": overload})
