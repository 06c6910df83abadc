"""HTTP connections that cannot be held open for nothing: uvicorn's protocol with limits that it lacks.

Its keep-alive time-out begins with the first answer. Before that, and between the bytes of a request, a client could
take any time, and headers could have any size. An answer that nobody reads is given up as well.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from asyncio.events import TimerHandle
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

log = logging.getLogger(__name__)

# The body's own time-out is BodyMiddleware's, which can answer; this one only ends what was answered without reading.
_BODY_GRACE_S = 1.0


@dataclass(frozen=True)
class ConnectionLimits:
    """What one connection may take.

    Attributes:
        header_bytes: of the request line and all headers.
        header_s: until they have arrived, from the connection or the first byte of a further request.
        body_s: until the body has arrived.
        write_s: how long a client may read nothing while an answer waits for it.
    """

    header_bytes: int
    header_s: float
    body_s: float
    write_s: float = 30.0


class GuardedProtocol(HttpToolsProtocol):
    """One connection within `limits`; see `guarded`."""

    limits: ConnectionLimits

    _timer: TimerHandle | None = None
    _write_timer: TimerHandle | None = None
    _in_headers = False
    _header_bytes = 0
    _too_large = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._arm(self.limits.header_s, self._headers_overdue)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._disarm()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and refuse headers that have no end."""
        super().data_received(data)
        if self._in_headers:
            self._header_bytes += len(data)
            if self._header_bytes > self.limits.header_bytes and not self.transport.is_closing():
                self._refuse(431, "headers_too_large", self._size_message())

    def on_message_begin(self) -> None:
        """Begin to count the headers and their time."""
        super().on_message_begin()
        self._in_headers, self._header_bytes = True, 0
        self._arm(self.limits.header_s, self._headers_overdue)

    def on_headers_complete(self) -> None:
        """Hand the request on if its headers are within the limit."""
        self._in_headers = False
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > self.limits.header_bytes:
            self._too_large = True
            raise ValueError("headers too large")  # the parser stops, and send_400_response answers
        self._arm(self.limits.body_s + _BODY_GRACE_S, self._body_overdue)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Stop the clock of the body."""
        self._disarm()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or too much of it, with the service's error body."""
        if self._too_large:
            self._refuse(431, "headers_too_large", self._size_message())
        else:
            self._refuse(400, "bad_http", "this is no valid HTTP/1.1 request")

    def pause_writing(self) -> None:
        """Give a client that reads nothing its time."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.limits.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the clock of the reader."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def _headers_overdue(self) -> None:
        if self._answering:  # a pipelined request may begin late, not cut off the answer before it
            self._arm(self.limits.header_s, self._headers_overdue)
        elif self._in_headers:
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
        return f"request line and headers take more than {self.limits.header_bytes} bytes (--header-limit)"

    def _refuse(self, status: int, error_type: str, message: str) -> None:
        """Answer from below the application, which never sees this request, and close."""
        self._disarm()
        request_id = uuid.uuid4().hex
        log.debug("refused a connection: %d %s %s", status, error_type, request_id)
        body = json.dumps({"error": message, "error_type": error_type, "request_id": request_id}).encode()
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _arm(self, seconds: float, overdue: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, overdue)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def guarded(limits: ConnectionLimits) -> type[GuardedProtocol]:
    """Return the protocol class with these limits, as uvicorn's ``http`` option takes it."""
    return type("BoundProtocol", (GuardedProtocol,), {"limits": limits})
