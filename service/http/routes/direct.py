"""Inference routes, whose valid bodies bypass FastAPI's dependency resolution.

FastAPI resolves an endpoint's dependencies for each request, which takes as long as everything else around the
inference of a sentence. Documentation, refusals and their messages stay FastAPI's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from inspect import signature
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter

BACKEND_HEADER = "x-q8bert-backend"

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class DirectRoute(APIRoute):
    """The route of an endpoint with the parameters body, service, trace and, unless both backends answer, backend."""

    def get_route_handler(self) -> Handler:
        """Return the handler of requests: calls the endpoint for a valid body, FastAPI's handler for any other."""
        assert self.body_field is not None
        usual, endpoint = super().get_route_handler(), self.endpoint
        model: type[BaseModel] = self.body_field.field_info.annotation  # type: ignore[assignment]
        answers = TypeAdapter(self.response_model)
        chooses_backend = "backend" in signature(endpoint).parameters

        async def handle(request: Request) -> Response:
            state = request.app.state
            # FastAPI makes the spans of the parts of its own handler
            if state.service.settings.otlp_endpoint or request.headers.get("content-type") != "application/json":
                return await usual(request)
            body = _parse(model, await request.body())
            if body is None:
                return await usual(request)
            options = {"backend": request.headers.get(BACKEND_HEADER)} if chooses_backend else {}
            answer = endpoint(body=body, service=state.service, trace=request.state.trace, **options)
            content = answers.dump_json(await answer, by_alias=True)
            return Response(content, media_type="application/json")

        return handle


def _parse(model: type[BaseModel], content: bytes) -> BaseModel | None:
    """Return the body, or None if it is invalid: FastAPI's handler says why."""
    try:
        return model.model_validate(json.loads(content))
    except (ValueError, RecursionError):
        return None
