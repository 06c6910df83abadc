"""The inference routes in front of FastAPI: a valid body goes straight to its endpoint.

FastAPI matches routes, enters exit stacks and resolves an endpoint's dependencies for each request, which takes as long
as everything else around the inference of a sentence. Documentation, refusals of bodies and their messages stay
FastAPI's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from inspect import signature
from typing import Any

from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter
from starlette.routing import BaseRoute
from starlette.types import Scope

from service.core import Service

BACKEND_HEADER = "x-q8bert-backend"
_BACKEND = BACKEND_HEADER.encode()


class DirectRoutes:
    """Calls the endpoint of an inference route for a valid body.

    Args:
        routes: routes whose endpoints have the parameters body, service, trace and, unless both backends answer,
            backend.
        service: given to the endpoints.
        note_route: called with the path of each request that is answered here, before its answer.
    """

    def __init__(
        self, routes: Iterable[BaseRoute], service: Service, note_route: Callable[[str], None] | None = None
    ) -> None:
        self._routes = {route.path: _Direct(route) for route in routes if isinstance(route, APIRoute)}
        self._service = service
        self._note_route = note_route

    async def answer(self, scope: Scope, content: bytes) -> bytes | None:
        """Return the JSON that answers a request with this body; None if FastAPI has to answer it.

        Raises:
            ServiceError, InputError: the endpoint refuses the request.
        """
        route = self._routes.get(scope["path"])
        if route is None or scope["method"] != "POST":
            return None
        headers = dict(reversed(scope["headers"]))  # of several, the first one
        if headers.get(b"content-type") != b"application/json":
            return None
        body = _parse(route.model, content)
        if body is None:
            return None
        if self._note_route is not None:
            self._note_route(scope["path"])
        options: dict[str, Any] = {"body": body, "service": self._service, "trace": scope["state"]["trace"]}
        if route.chooses_backend:
            given = headers.get(_BACKEND)
            options["backend"] = None if given is None else given.decode("latin-1")
        return route.answers.dump_json(await route.endpoint(**options), by_alias=True)


class _Direct:
    """What a route's handler needs, looked up once."""

    def __init__(self, route: APIRoute) -> None:
        assert route.body_field is not None
        self.endpoint = route.endpoint
        self.model: type[BaseModel] = route.body_field.field_info.annotation  # type: ignore[assignment]
        self.answers: TypeAdapter[Any] = TypeAdapter(route.response_model)
        self.chooses_backend = "backend" in signature(route.endpoint).parameters


def _parse(model: type[BaseModel], content: bytes) -> BaseModel | None:
    """Return the body, or None if it is invalid: FastAPI's handler says why."""
    try:
        return model.model_validate(json.loads(content))
    except (ValueError, RecursionError):
        return None
