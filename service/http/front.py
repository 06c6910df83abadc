"""The way of every request up to its route, as one layer of plain ASGI.

Id, trace, turn, key, body; then the inference routes answer a valid body here, and FastAPI answers all else. Layers of
their own would each cost an inference request a call, a closure and a look at the scope.
"""

from __future__ import annotations

import logging

from starlette.types import ASGIApp, Receive, Scope, Send

from q8core.errors import InputError
from service.answering.turns import Turns
from service.errors import ServiceError
from service.http.auth import KeyCheck
from service.http.exchange import CLIENT_LEFT, Exchange
from service.http.overload import Overload
from service.http.paths import without_slash
from service.http.routes.direct import DirectRoutes
from service.telemetry.recorder import RequestRecorder
from service.telemetry.trace import RequestTrace, request_id

log = logging.getLogger(__name__)


class Front:
    """Gives each request an id, a trace and a turn, checks key and body, counts the answer, catches all errors.

    Args:
        app: the application inside.
        recorder: counts the requests.
        overload: is told of requests that the queue had no room for.
        keys: checks their keys.
        routes: the inference routes.
        body_limit: most bytes of a body.
        body_timeout_s: time for a body to arrive, in seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        recorder: RequestRecorder,
        overload: Overload,
        keys: KeyCheck,
        routes: DirectRoutes,
        body_limit: int,
        body_timeout_s: float,
    ) -> None:
        self._app = app
        self._recorder = recorder
        self._overload = overload
        self._keys = keys
        self._routes = routes
        self._body_limit = body_limit
        self._body_timeout_s = body_timeout_s
        self._turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["path"] = path = without_slash(scope["path"])
        trace = RequestTrace(request_id(scope["headers"]), task=self._recorder.task(path))
        trace.left = scope.get("extensions", {}).get(CLIENT_LEFT)
        scope.setdefault("state", {})["trace"] = trace
        exchange = Exchange(scope, receive, send, trace)
        try:
            if trace.task is not None:
                await self._turns.wait()
            await self._answer(exchange)
        except Exception as error:
            if exchange.status or not isinstance(error, ServiceError | InputError):
                log.exception("unexpected error, request id %s", trace.request_id)
            if exchange.status:  # no second answer
                exchange.status = 500
            else:
                await exchange.refuse(error)
        finally:
            if trace.full_at is not None:
                self._overload.note_full(len(exchange.body), trace.full_at)
            self._recorder.record(scope["method"], path, trace, exchange.status or 499)

    async def _answer(self, exchange: Exchange) -> None:
        scope = exchange.scope
        self._keys.check(scope)
        if not await exchange.read_body(self._body_limit, self._body_timeout_s):
            exchange.trace.error_type = "client_closed"  # while sending: nobody is left to answer
            return
        content = await self._routes.answer(scope, exchange.body)
        if content is not None:
            await exchange.answer(200, content)
            return
        await self._app(exchange.application_scope(), exchange.receive, exchange.send)
