"""Dependencies of the routes on application and request, and the error answers in OpenAPI."""

from __future__ import annotations

from typing import Annotated, Any, cast

from fastapi import Depends, Header, Request

from service.core import Service
from service.errors import ADMIN_KINDS, ERROR_KINDS, HTTP_KINDS
from service.http.routes.direct import BACKEND_HEADER
from service.tasks import schemas
from service.telemetry.trace import RequestTrace


# async, because FastAPI would run a plain function on a thread for each request
async def _service(request: Request) -> Service:
    return cast(Service, request.app.state.service)


async def _trace(request: Request) -> RequestTrace:
    return cast(RequestTrace, request.state.trace)


ServiceDep = Annotated[Service, Depends(_service)]
TraceDep = Annotated[RequestTrace, Depends(_trace)]
BackendHeader = Annotated[
    str | None, Header(alias=BACKEND_HEADER, description="Like the body's `backend`; both must agree.")
]

INFERENCE_ERRORS = (400, 401, 404, 408, 413, 415, 422, 429, 500, 503, 504)


def error_responses(*statuses: int, admin: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI entries of these statuses from the error table, with the admin routes' rows if asked."""
    meanings: dict[int, dict[str, str]] = {}
    further = ADMIN_KINDS.values() if admin else ()
    for kind in [*ERROR_KINDS.values(), *further, *(HTTP_KINDS[status] for status in (400, 415))]:
        meanings.setdefault(kind.status, {})[kind.error_type] = kind.meaning
    return {
        status: {
            "model": schemas.ErrorBody,
            "description": "; ".join(f"`{slug}`: {meaning}" for slug, meaning in meanings[status].items()),
        }
        for status in statuses
    }
