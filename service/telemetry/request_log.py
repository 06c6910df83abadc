"""One log line per request to a task: its id, task and backend, the outcome, and the times."""

from __future__ import annotations

import logging
from typing import Any

from opentelemetry import trace as otel

from service.telemetry.logs import FIELDS
from service.telemetry.trace import RequestTrace

log = logging.getLogger(__name__)


def log_request(trace: RequestTrace, status: int, seconds: float) -> None:
    """Log one request to a task, as a record that `JsonFormatter` writes with its fields."""
    if trace.task is not None:
        log.info("request", extra={FIELDS: request_fields(trace, status, seconds)})


def request_fields(trace: RequestTrace, status: int, seconds: float) -> dict[str, Any]:
    """Return the fields of a request's log line, never its text: id, task, backend, outcome, time of each stage."""
    fields: dict[str, Any] = {
        "request_id": trace.request_id,
        "task": trace.task,
        "backend": trace.backend,
        "model": trace.model,
        "status": status,
        "error_type": trace.error_type,
        "tokens": trace.tokens,
        "windows": trace.windows,
        "truncated": trace.truncated,
        "total_ms": _ms(seconds),
        "stages_ms": _stages(trace),
        "trace_id": _trace_id(),
    }
    if trace.shares:
        fields["shares"] = [{"backend": share.backend, "stages_ms": _stages(share)} for share in trace.shares]
    return {name: value for name, value in fields.items() if value is not None}


def _stages(trace: RequestTrace) -> dict[str, float]:
    return {stage: _ms(seconds) for stage, seconds in trace.stages.items()}


def _trace_id() -> str | None:
    """Return the id of the current OpenTelemetry trace, None if there is none."""
    context = otel.get_current_span().get_span_context()
    return otel.format_trace_id(context.trace_id) if context.is_valid else None


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
