"""The trace of one request: what it did and how long it took; read at its end by headers, metrics and logs."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from service.errors import QueueFull
from service.telemetry.metrics import NO_BACKEND

_SAFE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the client's X-Request-Id if it is safe in headers and logs, else a new id."""
    given = dict(headers).get(b"x-request-id", b"")
    return given.decode() if _SAFE_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"


@dataclass(eq=False)
class RequestTrace:
    """The facts of one request; times in seconds, None until known."""

    request_id: str
    task: str | None = None
    backend: str = NO_BACKEND
    model: str | None = None
    started: float = field(default_factory=time.monotonic)
    stages: dict[str, float] = field(default_factory=lambda: dict[str, float]())
    begun: dict[str, float] = field(default_factory=lambda: dict[str, float]())
    """When each stage began, on the monotonic clock; for a request with shares, only the stages before the shares."""
    tokens: int | None = None
    windows: int | None = None
    truncated: int | None = None
    left: asyncio.Future[None] | None = None
    """Done when the client has left; None if the server cannot tell."""
    error_type: str | None = None
    """The error_type of an error answer, None for a successful one."""
    full_at: int | None = None
    """How often anything had left the queue when it had no room for this request; None if it had room."""
    answered_by: str | None = None
    """The backend that gave the answer, or another model's MODEL@BACKEND, if ``backend`` leaves that to the service."""
    escalated: int | None = None
    """How many inputs a second variant answered again; None unless ``backend`` leaves the choice to the service."""
    shares: list[RequestTrace] = field(default_factory=lambda: list["RequestTrace"]())
    """For a request that two variants answer: one trace for each that has begun."""

    def share(self, backend: str) -> RequestTrace:
        """Begin the share of one backend; it starts with what this trace has already (the encoding)."""
        share = replace(self, backend=backend, stages=dict(self.stages), begun=dict(self.begun), shares=[])
        self.shares.append(share)
        return share

    def part(self) -> RequestTrace:
        """Begin a second round of the same request; `close_share` adds its times."""
        return replace(self, stages={}, shares=[])

    def close_share(self, share: RequestTrace) -> None:
        """Add the times of a share to those of the whole request."""
        for name, seconds in share.stages.items():
            if name != "tokenize":  # encoded before all shares, and counted already
                self.stages[name] = self.stages.get(name, 0.0) + seconds

    def fail(self, error: Exception, error_type: str) -> None:
        """Note the error that the request is answered with."""
        self.error_type = error_type
        self.full_at = error.departures if isinstance(error, QueueFull) else None

    @property
    def client_left(self) -> bool:
        """Whether the client has disconnected."""
        return self.left is not None and self.left.done()

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Time a stage; of one that runs again, times add up."""
        begin = time.monotonic()
        self.begun.setdefault(name, begin)
        try:
            yield
        finally:
            self.stages[name] = self.stages.get(name, 0.0) + time.monotonic() - begin

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return response headers, with times in milliseconds, and the W3C Server-Timing that browsers show."""
        values = [(b"x-request-id", self.request_id.encode())]
        if self.task is not None:
            total = time.monotonic() - self.started
            shown = {stage: b"%.3f" % (seconds * 1000) for stage, seconds in (*self.stages.items(), ("total", total))}
            values += [(name, shown[stage]) for name, stage in _STAGE_HEADERS.items() if stage in shown]
            timings = [b"%s;dur=%s" % (stage.encode(), milliseconds) for stage, milliseconds in shown.items()]
            values.append((b"server-timing", b", ".join(timings)))
        if self.backend != NO_BACKEND:
            values.append((b"x-q8bert-backend", _printable(self.answered_by or self.backend)))
        if self.model is not None:
            values.append((b"x-q8bert-model", _printable(self.model)))
        for name, number in (
            (b"x-compute-tokens", self.tokens),
            (b"x-q8bert-windows", self.windows),
            (b"x-q8bert-truncated", self.truncated),
            (b"x-q8bert-escalated", self.escalated),
        ):
            if number is not None:
                values.append((name, b"%d" % number))
        return values


def _printable(name: str) -> bytes:
    """Return a name for a header, which may not have every character that a model's name may have."""
    return _UNPRINTABLE.sub("?", name).encode()


_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
_STAGE_HEADERS = {
    b"x-total-time": "total",
    b"x-tokenization-time": "tokenize",
    b"x-queue-time": "queue",
    b"x-inference-time": "infer",
}

EXPOSED_HEADERS = (
    *("x-request-id", "retry-after", "server-timing", *(name.decode() for name in _STAGE_HEADERS)),
    *("x-q8bert-backend", "x-q8bert-model", "x-compute-tokens", "x-q8bert-windows", "x-q8bert-truncated"),
    "x-q8bert-escalated",
)
"""Response headers that a page of another origin may read."""


class InFlight:
    """The accepted requests that have no answer yet."""

    def __init__(self) -> None:
        self._traces: set[RequestTrace] = set()

    @contextmanager
    def track(self, trace: RequestTrace) -> Generator[None]:
        """Count a request from its admission to its answer or failure."""
        self._traces.add(trace)
        try:
            yield
        finally:
            self._traces.discard(trace)

    def count(self, backend: str | None = None) -> int:
        """Return the number of requests of one backend, or of all."""
        return sum(backend in (None, trace.backend) for trace in tuple(self._traces))
