"""OpenTelemetry traces: FastAPI's own spans of requests, with a span per stage, sent to an OTLP endpoint."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace as otel
from starlette.types import Scope

import service as package
from q8core.errors import InputError
from service.telemetry.trace import RequestTrace

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

# Probes and scrapers ask these every few seconds: their spans would bury the others.
UNTRACED_PATHS = frozenset({"/livez", "/readyz", "/health", "/v2/health/live", "/v2/health/ready", "/metrics"})
_TRACES_PATH = "/v1/traces"
_FLUSH_MS = 2000

# Validation messages and stack traces may contain a client's text: FastAPI must not send them to a global provider.
_NO_LOGS: TelemetryConfig = {"logs": False}
NO_TELEMETRY: TelemetryConfig = {**_NO_LOGS, "tracing": False, "metrics": False}
"""Without an endpoint FastAPI need not look for providers on each request."""


class Tracing:
    """A tracer provider for the application, and an observer that adds a span per stage.

    Args:
        provider: receives the spans; `create_tracing` builds one for an endpoint.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("q8bert", package.__version__)

    def telemetry(self) -> TelemetryConfig:
        """The value of FastAPI's argument ``telemetry``."""
        return {
            **_NO_LOGS,
            "tracer_provider": self._provider,
            "metrics": False,  # Prometheus has them
            "operation_spans": False,  # the spans of the stages say more
            "auto_configure": False,
            "exclude": _excluded,
        }

    def note_route(self, path: str) -> None:
        """Name the span of a request that does not reach FastAPI's routing, as that would."""
        span = otel.get_current_span()
        span.update_name(f"POST {path}")
        span.set_attribute("http.route", path)

    def observe(self, trace: RequestTrace, status: int, seconds: float) -> None:
        """Add a child span for each stage of a finished request."""
        parent = otel.get_current_span()
        if trace.task is None or not parent.get_span_context().trace_flags.sampled:
            return
        context = otel.set_span_in_context(parent)
        to_epoch = time.time_ns() - time.monotonic_ns()
        for part in (trace, *trace.shares):
            for stage, begin in part.begun.items():
                if part is not trace and stage in trace.begun:
                    continue  # encoded once, for all shares
                start = round(begin * 1e9) + to_epoch
                span = self._tracer.start_span(stage, context, attributes=_attributes(part), start_time=start)
                span.end(start + round(part.stages[stage] * 1e9))

    def close(self) -> None:
        """Send waiting spans, within two seconds, and stop."""
        self._provider.force_flush(_FLUSH_MS)
        self._provider.shutdown()


def create_tracing(endpoint: str) -> Tracing:
    """Set up sending traces to a collector.

    Args:
        endpoint: base URL of OTLP over HTTP, such as ``http://127.0.0.1:4318``, or with the path ``/v1/traces``.

    Raises:
        InputError: the extra ``otel`` is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise InputError(
            f"--otlp-endpoint is {endpoint}, but OpenTelemetry is not installed: pip install 'q8bert[otel]'"
        ) from error
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, if set, win over these
    own = Resource({"service.name": "q8bert", "service.version": package.__version__})
    resource = own.merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=traces_address(endpoint))))
    return Tracing(provider)


def traces_address(endpoint: str) -> str:
    """Return the URL of an OTLP endpoint's traces."""
    return endpoint if urlsplit(endpoint).path.endswith(_TRACES_PATH) else endpoint.rstrip("/") + _TRACES_PATH


def _excluded(scope: Scope) -> bool:
    return scope.get("path") in UNTRACED_PATHS


def _attributes(part: RequestTrace) -> dict[str, str | int]:
    attributes: dict[str, str | int | None] = {
        "q8bert.request_id": part.request_id,
        "q8bert.task": part.task,
        "q8bert.backend": part.backend,
        "q8bert.model": part.model,
        "q8bert.tokens": part.tokens,
        "q8bert.windows": part.windows,
    }
    return {name: value for name, value in attributes.items() if value is not None}
