"""One request and its answer: what the application inside Starlette's interface receives and sends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from starlette.types import Message, Receive, Scope, Send

from service.errors import BodyTooLarge, BodyTooSlow, describe_error
from service.http.content_encoding import check_encoding
from service.telemetry.trace import RequestTrace

Headers = Iterable[tuple[bytes, bytes]]

CLIENT_LEFT = "q8bert.client_left"
"""The ASGI extension with a future of the connection that is done once the client has left; see `protocol`."""


class Exchange:
    """Reads the body in one piece, and puts the trace's headers on the answer.

    The routes need the whole body anyway. Reading it here limits every body, declared or chunked, in one place. A
    compressed body is refused unread. HEAD becomes GET for the application, and its answer loses the body (RFC 9110,
    section 9.3.2): FastAPI's routes would answer 405, and HEAD as a method of each route would document it twice.

    Args:
        scope: the request's.
        receive: the server's.
        send: the server's.
        trace: the request's.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, trace: RequestTrace) -> None:
        self.scope = scope
        self.trace = trace
        self.body = b""
        self.status = 0
        """Status of the answer; 0 before it began."""
        self._receive = receive
        self._send = send
        self._given = False

    async def read_body(self, limit: int, timeout_s: float) -> bool:
        """Read the whole body into ``body``; return False if the client has left.

        Args:
            limit: most bytes.
            timeout_s: time for the body to arrive, in seconds.

        Raises:
            EncodedBody: it is compressed.
            BodyTooLarge: it has more bytes.
            BodyTooSlow: it took longer.
        """
        headers = self.scope["headers"]
        check_encoding(self.scope["method"], headers)
        declared = declared_size(headers)
        if declared is not None and declared > limit:
            raise _too_large(f"{declared} bytes", limit)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._read(limit)
        except TimeoutError:
            raise BodyTooSlow(f"the body did not arrive within {timeout_s:g} s (--body-timeout-s)") from None

    async def _read(self, limit: int) -> bool:
        body = bytearray()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return False
            body += message.get("body", b"")
            if len(body) > limit:
                raise _too_large("larger", limit)
            if not message.get("more_body", False):
                self.body = bytes(body)
                return True

    def application_scope(self) -> Scope:
        """Return the scope for the application."""
        return {**self.scope, "method": "GET"} if self.scope["method"] == "HEAD" else self.scope

    async def receive(self) -> Message:
        """Give the application the body in one piece, then whatever the server says."""
        if self._given:
            return await self._receive()
        self._given = True
        return {"type": "http.request", "body": self.body, "more_body": False}

    async def send(self, message: Message) -> None:
        """Send a message of the application."""
        if message["type"] == "http.response.start":
            await self._start(message["status"], message["headers"])
        elif self.scope["method"] == "HEAD":
            await self._send({**message, "body": b""})
        else:
            await self._send(message)

    async def answer(self, status: int, content: bytes, headers: Headers = ()) -> None:
        """Send a whole answer in JSON."""
        own = ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(content)))
        await self._start(status, (*own, *headers))
        await self.send({"type": "http.response.body", "body": content})

    async def refuse(self, error: Exception) -> None:
        """Send the answer to an error, and note its type in the trace."""
        answer = describe_error(error)
        self.trace.fail(error, answer.kind.error_type)
        headers = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
        await self.answer(answer.kind.status, answer.content(self.trace.request_id), headers)

    async def _start(self, status: int, headers: Headers) -> None:
        self.status = status
        raw = [*headers, *self.trace.headers()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})


def declared_size(headers: Headers) -> int | None:
    """Return the bytes of the body as its header gives them; None without such a header."""
    value = next((value for name, value in headers if name == b"content-length"), b"")
    return int(value) if value.isdigit() else None


def _too_large(size: str, limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is {size}; at most {limit} bytes are taken (--payload-limit)")
