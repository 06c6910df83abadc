"""The middleware of every request, as plain ASGI: id, times, metrics, body limit, watching for disconnects."""

from __future__ import annotations

import asyncio
import json
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.answering.turns import Turns
from service.errors import BodyTooLarge, BodyTooSlow, EncodedBody, describe_error
from service.http.content_encoding import check_encoding
from service.http.paths import without_slash
from service.telemetry.recorder import RequestRecorder
from service.telemetry.trace import RequestTrace, request_id

log = logging.getLogger(__name__)


class RequestMiddleware:
    """Outermost: gives each request an id, a trace and a turn, adds headers, counts the answer, catches all errors.

    Args:
        app: the application inside.
        recorder: counts the requests.
    """

    def __init__(self, app: ASGIApp, *, recorder: RequestRecorder) -> None:
        self._app = app
        self._recorder = recorder
        self._turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["path"] = without_slash(scope["path"])
        trace = RequestTrace(request_id(scope["headers"]), task=self._recorder.task(scope["path"]))
        scope.setdefault("state", {})["trace"] = trace
        status = 0

        async def traced_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *trace.headers()]}
            await send(message)

        try:
            if trace.task is not None:
                await self._turns.wait()
            await self._app(scope, receive, traced_send)
        except Exception as error:
            log.exception("unexpected error, request id %s", trace.request_id)
            if not status:
                await send_error(error, trace, traced_send)
            status = 500
        finally:
            self._recorder.record(scope["method"], scope["path"], trace, status or 499)


class BodyMiddleware:
    """Reads the whole body within limits of size and time, passes it on in one piece, then watches for a disconnect.

    The routes need the whole body anyway. Reading it here limits every body, declared or chunked, in one function, and
    gives the connection a single reader. A compressed body is refused unread.
    """

    def __init__(self, app: ASGIApp, *, limit: int, timeout_s: float) -> None:
        self._app = app
        self._limit = limit
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace: RequestTrace = scope["state"]["trace"]
        try:
            check_encoding(scope["method"], scope["headers"])
            async with asyncio.timeout(self._timeout_s):
                body = await self._read(scope, receive)
        except TimeoutError:
            error = BodyTooSlow(f"the body did not arrive within {self._timeout_s:g} s (--body-timeout-s)")
            await send_error(error, trace, send)
            return
        except (BodyTooLarge, EncodedBody) as error:
            await send_error(error, trace, send)
            return
        if body is None:
            trace.error_type = "client_closed"  # while sending: nobody is left to answer
            return
        left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        trace.left = left
        watcher = asyncio.create_task(_watch(receive, left))
        first = True

        async def replay() -> Message:
            nonlocal first
            if first:
                first = False
                return {"type": "http.request", "body": body, "more_body": False}
            await asyncio.wait([left])
            return {"type": "http.disconnect"}

        try:
            await self._app(scope, replay, send)
        finally:
            watcher.cancel()
            left.cancel()

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared) > self._limit:
            raise self._too_large(f"{int(declared)} bytes")
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self._limit:
                raise self._too_large("larger")
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self, size: str) -> BodyTooLarge:
        return BodyTooLarge(f"the body is {size}; at most {self._limit} bytes are taken (--payload-limit)")


async def send_error(error: Exception, trace: RequestTrace, send: Send) -> None:
    """Send the error's JSON body from outside the framework."""
    answer = describe_error(error)
    trace.error_type = answer.kind.error_type
    body = json.dumps(answer.body(trace.request_id), ensure_ascii=False).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **answer.headers}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.kind.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def _watch(receive: Receive, left: asyncio.Future[None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    if not left.done():
        left.set_result(None)
