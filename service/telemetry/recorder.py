"""Counts finished requests, and passes them to logs and traces."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache

from service.telemetry.metrics import REJECTIONS, ServiceMetrics
from service.telemetry.trace import RequestTrace

log = logging.getLogger(__name__)

Observer = Callable[[RequestTrace, int, float], None]
"""Called with each finished request's trace, status and seconds."""


class RequestRecorder:
    """Records every request once, at its end.

    Args:
        tasks: path -> task, for the paths whose requests are counted.
        metrics: counts them.
        observers: called with each finished request: logs, traces.
    """

    def __init__(self, tasks: Mapping[str, str], metrics: ServiceMetrics, observers: Sequence[Observer] = ()) -> None:
        self._tasks = tasks
        self._observers = tuple(observers)
        # looking a series up by its labels takes longer than counting in it
        requests = metrics.requests
        self._total = cache(requests.total.labels)
        self._seconds = cache(requests.seconds.labels)
        self._stage_seconds = cache(requests.stage_seconds.labels)
        self._rejected = cache(requests.rejected.labels)

    def task(self, path: str) -> str | None:
        """Return the task that requests of this path count for, or None."""
        return self._tasks.get(path)

    def record(self, method: str, path: str, trace: RequestTrace, status: int) -> None:
        """Count one request and pass it on."""
        seconds = time.monotonic() - trace.started
        log.debug("%s %s %d %.1f ms %s", method, path, status, seconds * 1000, trace.request_id)
        for observe in self._observers:
            observe(trace, status, seconds)
        if trace.task is None:
            return
        if status == 200:
            for part in trace.shares or [trace]:
                taken = sum(part.stages.values()) if trace.shares else seconds
                self._total(part.task, part.backend, status).inc()
                self._seconds(part.task, part.backend).observe(taken)
                for stage, duration in part.stages.items():
                    self._stage_seconds(part.task, part.backend, stage).observe(duration)
            return
        failed = trace.shares[-1] if trace.shares else trace
        self._total(failed.task, failed.backend, status).inc()
        if trace.error_type in REJECTIONS:
            self._rejected(trace.task, REJECTIONS[trace.error_type]).inc()
