"""Cheap refusals, for when requests come faster than the application could refuse them.

A request that passes through the whole application only to learn that the queue is full takes half as much time of the
event loop as one that is answered. Where most are refused, that is more than the answers take, and the CPUs have less
time for these. So further requests are refused by the connection's protocol, before anything of theirs is looked at but
path and headers: beyond a number of requests in flight, and as long as the queue has no room for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from service.errors import ERROR_KINDS, ErrorAnswer, QueueFull, describe_error
from service.http.cors import CrossOrigin
from service.http.exchange import Headers, declared_size
from service.queueing.batcher import BatchQueue
from service.telemetry.recorder import RequestRecorder
from service.telemetry.trace import RequestTrace, request_id

BEING_SERVED = 64
"""Requests in flight besides those that wait in the queue: being read, encoded, computed or answered."""

_ESTIMATE_S = 0.1  # how long an estimate of the queue's time stays valid
_FULL_S = 0.05  # how long a refusal says something about the next request: others may give up before they queue


class Overload:
    """Decides whether too many requests are in flight, and refuses in place of the application.

    Args:
        limit: with this many requests in flight, further ones for `tasks` are refused.
        tasks: path -> task, of the inference routes; other routes are never refused.
        queue: estimates when there will be room.
        recorder: counts the refused requests.
        cross_origin: which pages may read the refusal, as for every other answer.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self,
        limit: int,
        tasks: Mapping[str, str],
        queue: BatchQueue,
        recorder: RequestRecorder,
        cross_origin: CrossOrigin | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        # with and without a trailing slash (see `service.http.paths`): requests are looked up as they were sent
        self._tasks = {sent.encode(): (path, task) for path, task in tasks.items() for sent in (path, f"{path}/")}
        self._queue = queue
        self._recorder = recorder
        self._cross_origin = cross_origin
        self._clock = clock
        self._answer = ErrorAnswer(ERROR_KINDS[QueueFull], "", {})
        self._good_until = 0.0
        self._too_many = 0  # size of the smallest body that was refused ...
        self._full_at = -1  # ... since this number of departures from the queue
        self._full_until = 0.0

    def note_full(self, size: int, departures: int) -> None:
        """Remember that the queue had no room for a request.

        Args:
            size: bytes of its body.
            departures: how often anything had left the queue until then. Whatever has left it since has made room.
        """
        if departures != self._queue.departures:
            return
        now = self._clock()
        known = departures == self._full_at and now < self._full_until
        self._too_many = min(self._too_many, size) if known else size
        self._full_at, self._full_until = departures, now + _FULL_S

    def refuses(self, method: bytes, target: bytes, headers: Headers, under_way: int) -> bool:
        """Whether to refuse a request for this target (path and query as sent), with `under_way` others in flight.

        A browser's preflight request costs next to nothing, and without its answer a page could not read the refusal
        that follows.
        """
        if under_way < self._limit and not self._is_full(headers):
            return False
        return method != b"OPTIONS" and target.partition(b"?")[0] in self._tasks

    def _is_full(self, headers: Headers) -> bool:
        """Whether the queue had no room for as small a body, and nothing has left it since."""
        if self._queue.departures != self._full_at or self._clock() >= self._full_until:
            return False
        size = declared_size(headers)
        return size is not None and size >= self._too_many

    def answer(
        self, method: str, target: bytes, headers: list[tuple[bytes, bytes]]
    ) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """Record a refused request and return body and headers of its answer; the status is 429."""
        path, task = self._tasks[target.partition(b"?")[0]]
        answer = self._current()
        trace = RequestTrace(request_id(headers), task=task, error_type=answer.kind.error_type)
        body = answer.content(trace.request_id)
        named = {"content-type": "application/json", "content-length": str(len(body)), **answer.headers}
        if self._cross_origin is not None:
            origin = dict(headers).get(b"origin")
            named |= self._cross_origin.headers(None if origin is None else origin.decode("latin-1"))
        self._recorder.record(method, path, trace, answer.kind.status)
        return body, [*((name.encode(), value.encode()) for name, value in named.items()), *trace.headers()]

    def _current(self) -> ErrorAnswer:
        now = self._clock()
        if now >= self._good_until:
            wait = self._queue.drain_seconds()
            self._answer = describe_error(QueueFull("too many requests are under way; try later", retry_after_s=wait))
            self._good_until = now + _ESTIMATE_S
        return self._answer
