"""The ASGI application: routes, error answers and middleware around a `Service`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

import service as package
from q8core.errors import InputError
from service.core import Service
from service.errors import ServiceError, describe_error
from service.http.auth import KeyCheck
from service.http.cors import CrossOrigin
from service.http.front import Front
from service.http.overload import BEING_SERVED, Overload
from service.http.routes import admin as admin_routes
from service.http.routes import (
    agreement,
    classify,
    compare,
    health,
    info,
    metrics,
    open_inference,
    page,
    qa,
    tei,
    vllm,
)
from service.http.routes.direct import DirectRoutes
from service.models.registry import ModelRegistry
from service.operations.keys import Keys, load_keys
from service.operations.model_admin import ModelAdmin
from service.operations.watcher import watching
from service.settings import Settings
from service.telemetry.exchange import Place
from service.telemetry.metrics import COMPARE
from service.telemetry.otlp import NO_TELEMETRY, Tracing, create_tracing
from service.telemetry.recorder import Observer, RequestRecorder
from service.telemetry.request_log import log_request

log = logging.getLogger(__name__)

TASK_PATHS = {
    "/classify": "classify",
    "/v1/classify": "classify",
    "/predict": "classify",
    "/qa": "qa",
    "/question-answering": "qa",
    "/compare": COMPARE,
}

_DESCRIPTION = (
    "BERT in 8 bits on CPUs, beside fp32. Bodies follow Hugging Face's task schemas; every error has the body "
    "`{error, error_type, request_id}`; stage times, token counts and the backend come in response headers."
)


def create_app(
    settings: Settings,
    registry: ModelRegistry,
    *,
    place: Place | None = None,
    warmed: Callable[[], None] = lambda: None,
) -> FastAPI:
    """Build a service, which gets the arguments, and its application; raises what `application` raises."""
    return application(Service(settings, registry, place=place, warmed=warmed))


def application(service: Service) -> FastAPI:
    """Build the application of a service, ``app.state.service``; engines load in the background at the latest then.

    Raises:
        InputError: a file of keys cannot be used, or tracing is configured but not installed.
    """
    settings = service.settings
    keys = load_keys(settings)
    tracing = create_tracing(settings.otlp_endpoint) if settings.otlp_endpoint else None
    admin = ModelAdmin(service, settings.model_root)
    app = (FastAPIOffline if settings.docs else _without_docs)(
        title="q8bert",
        version=package.__version__,
        description=_DESCRIPTION,
        lifespan=_lifespan(service, admin, tracing),
        redirect_slashes=False,
        redoc_url=None,
        telemetry=tracing.telemetry() if tracing is not None else NO_TELEMETRY,
    )
    app.state.service = service
    app.state.admin = admin
    _add_routes(app, keys)
    observers: list[Observer] = [log_request] if settings.json_logs else []
    observers += [tracing.observe] if tracing is not None else []
    recorder = RequestRecorder(TASK_PATHS, service.metrics, observers)
    cross_origin = CrossOrigin(settings.cors_allow_origin) if settings.cors_allow_origin else None
    limit = settings.max_queue_requests + BEING_SERVED
    app.state.overload = Overload(limit, TASK_PATHS, service.queue, recorder, cross_origin)
    _add_middleware(app, keys, recorder, cross_origin, tracing)
    return app


def _lifespan(
    service: Service, admin: ModelAdmin, tracing: Tracing | None
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Start the service before the first request, and stop all parts after the last one."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        settings = service.settings
        await page.check_files()
        service.start()
        try:
            async with watching(admin, settings.watch_s):
                yield
        except asyncio.CancelledError:
            log.info("leaving at once")  # a second signal: uvicorn exits without draining the application
        finally:
            service.drain()
            await run_in_threadpool(admin.join, settings.request_timeout_s)
            await run_in_threadpool(service.stop, settings.request_timeout_s)
            if tracing is not None:
                await run_in_threadpool(tracing.close)

    return lifespan


def _add_routes(app: FastAPI, keys: Keys) -> None:
    """Add all paths, and what turns their errors into answers."""
    app.mount(page.ASSETS_PATH, page.PageFiles(directory=page.FOLDER), name="page")
    for module in (classify, qa, compare, agreement, tei, vllm, open_inference, info):
        app.include_router(module.router, dependencies=_shows_lock("api key") if keys.api else [])
    for module in (health, metrics, page):
        app.include_router(module.router)
    if keys.admin:
        app.include_router(admin_routes.router, dependencies=_shows_lock("admin key"))
    for kind in (RequestValidationError, HTTPException, ServiceError, InputError):
        app.add_exception_handler(kind, _answer_error)


def _add_middleware(
    app: FastAPI,
    keys: Keys,
    recorder: RequestRecorder,
    cross_origin: CrossOrigin | None,
    tracing: Tracing | None,
) -> None:
    """Put the middleware around the routes; the last one added is the outermost."""
    service: Service = app.state.service
    settings = service.settings
    inference = [route for module in (classify, qa, compare) for route in module.router.routes]
    app.add_middleware(
        Front,
        recorder=recorder,
        overload=app.state.overload,
        keys=KeyCheck(keys, protect_metrics=settings.protect_metrics),
        routes=DirectRoutes(inference, service, tracing.note_route if tracing is not None else None),
        body_limit=settings.payload_limit,
        body_timeout_s=settings.body_timeout_s,
    )
    if cross_origin is not None:
        app.add_middleware(CORSMiddleware, **cross_origin.middleware())


def _shows_lock(scheme: str) -> list[Any]:
    """Let /docs ask for the key and send it; `KeyCheck` checks it."""
    return [Depends(HTTPBearer(auto_error=False, scheme_name=scheme))]


def _without_docs(**options: Any) -> FastAPI:
    return FastAPI(docs_url=None, openapi_url=None, **options)


async def _answer_error(request: Request, error: Exception) -> Response:
    answer, trace = describe_error(error), request.state.trace
    trace.fail(error, answer.kind.error_type)
    content = answer.content(trace.request_id)
    return Response(content, answer.kind.status, dict(answer.headers), media_type="application/json")
