"""The inference routes in front of FastAPI: a valid body goes straight to its endpoint.

FastAPI matches routes, enters exit stacks and resolves an endpoint's dependencies for each request, which takes as long
as everything else around the inference of a sentence. Documentation, refusals of bodies and their messages stay
FastAPI's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from inspect import signature
from typing import Any

from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from q8core.errors import InputError
from service.core import Service
from service.errors import ServiceError, describe_error
from service.telemetry.trace import RequestTrace

BACKEND_HEADER = "x-q8bert-backend"
_BACKEND = BACKEND_HEADER.encode()


class DirectRoutes:
    """Innermost: calls the endpoint of an inference route for a valid body, and the application for all else.

    Args:
        app: the application inside.
        routes: routes whose endpoints have the parameters body, service, trace and, unless both backends answer,
            backend.
        service: given to the endpoints.
    """

    def __init__(self, app: ASGIApp, *, routes: Iterable[BaseRoute], service: Service) -> None:
        self._app = app
        self._routes = {route.path: _Direct(route) for route in routes if isinstance(route, APIRoute)}
        self._service = service
        # FastAPI names the span of a request when it has matched its route
        self._off = service.settings.otlp_endpoint is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope."""
        route = None if self._off or scope["type"] != "http" else self._routes.get(scope["path"])
        if route is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        headers = dict(reversed(scope["headers"]))  # of several, the first one
        if headers.get(b"content-type") != b"application/json":
            await self._app(scope, receive, send)
            return
        message = await receive()  # the whole body: see `BodyMiddleware`
        body = _parse(route.model, message.get("body", b""))
        if body is None:
            await self._app(scope, _again(message, receive), send)
            return
        trace: RequestTrace = scope["state"]["trace"]
        options: dict[str, Any] = {"body": body, "service": self._service, "trace": trace}
        if route.chooses_backend:
            given = headers.get(_BACKEND)
            options["backend"] = None if given is None else given.decode("latin-1")
        try:
            content = route.answers.dump_json(await route.endpoint(**options), by_alias=True)
        except (ServiceError, InputError) as error:
            await answer_error(trace, error)(scope, receive, send)
            return
        length = str(len(content)).encode()
        raw = [(b"content-length", length), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        await send({"type": "http.response.body", "body": content})


class _Direct:
    """What a route's handler needs, looked up once."""

    def __init__(self, route: APIRoute) -> None:
        assert route.body_field is not None
        self.endpoint = route.endpoint
        self.model: type[BaseModel] = route.body_field.field_info.annotation  # type: ignore[assignment]
        self.answers: TypeAdapter[Any] = TypeAdapter(route.response_model)
        self.chooses_backend = "backend" in signature(route.endpoint).parameters


def answer_error(trace: RequestTrace, error: Exception) -> JSONResponse:
    """Return the answer to an error of a route, and note its type in the trace."""
    answer = describe_error(error)
    trace.error_type = answer.kind.error_type
    return JSONResponse(answer.body(trace.request_id), answer.kind.status, headers=dict(answer.headers))


def _again(message: Message, receive: Receive) -> Receive:
    """Return a `receive` that starts with this message."""
    waiting = [message]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


def _parse(model: type[BaseModel], content: bytes) -> BaseModel | None:
    """Return the body, or None if it is invalid: FastAPI's handler says why."""
    try:
        return model.model_validate(json.loads(content))
    except (ValueError, RecursionError):
        return None
