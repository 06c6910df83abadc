"""The ASGI application: routes, error answers and middleware around a `Service`."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

import service as package
from q8core.errors import InputError
from service.container import Service
from service.errors import ServiceError, describe_error
from service.metrics import COMPARE
from service.middleware import BodyMiddleware, Observer, RequestMiddleware
from service.registry import ModelRegistry
from service.request_log import log_request
from service.routes import agreement, classify, compare, health, info, metrics, page, qa
from service.settings import Settings
from service.trace import RequestTrace
from service.tracing import NO_TELEMETRY_LOGS, create_tracing

log = logging.getLogger(__name__)

TASK_PATHS = {"/classify": "classify", "/qa": "qa", "/question-answering": "qa", "/compare": COMPARE}

_DESCRIPTION = (
    "BERT in 8 bits on CPUs, beside fp32. Bodies follow Hugging Face's task schemas; every error has the body "
    "`{error, error_type, request_id}`; stage times, token counts and the backend come in response headers."
)


def create_app(settings: Settings, registry: ModelRegistry) -> FastAPI:
    """Build the application; engines are loaded in the background once it starts.

    ``app.state.service`` is the `Service` behind it.

    Raises:
        InputError: traces are asked for and cannot be sent.
    """
    service = Service(settings, registry)
    tracing = create_tracing(settings.otlp_endpoint) if settings.otlp_endpoint else None
    observers: list[Observer] = [log_request] if settings.json_logs else []
    observers += [tracing.observe] if tracing is not None else []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        service.start()
        try:
            yield
        finally:
            await run_in_threadpool(service.stop, settings.request_timeout_s)
            if tracing is not None:
                await run_in_threadpool(tracing.close)

    app = FastAPIOffline(  # /docs needs no network: its scripts come from the package, not from a CDN
        title="q8bert",
        version=package.__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
        telemetry=tracing.telemetry() if tracing is not None else NO_TELEMETRY_LOGS,
    )
    app.state.service = service
    app.mount(page.ASSETS_PATH, page.PageFiles(directory=page.FOLDER), name="page")
    for module in (classify, qa, compare, agreement, info, health, metrics, page):
        app.include_router(module.router)
    for kind in (RequestValidationError, HTTPException, ServiceError, InputError):
        app.add_exception_handler(kind, _answer_error)
    # the last one added is the outermost
    app.add_middleware(BodyMiddleware, limit=settings.payload_limit)
    app.add_middleware(RequestMiddleware, tasks=TASK_PATHS, metrics=service.metrics, observers=observers)
    return app


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    trace: RequestTrace = request.state.trace
    answer = describe_error(error)
    trace.error_type = answer.kind.error_type
    return JSONResponse(answer.body(trace.request_id), answer.kind.status, headers=dict(answer.headers))
