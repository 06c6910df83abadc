"""The steps of a request, the same for every policy: admit, encode, queue, wait, post-process.

They run on the event loop, except that encoding and post-processing of longer texts run in a small thread pool, and
inference on the engine thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

from q8core.arrays import Logits
from service.answering.deliveries import Deliveries
from service.answering.text_threads import TextThreads
from service.errors import ClientClosed, DeadlineExceeded
from service.queueing.batcher import BatchQueue, Lane, Reserved, Ticket, WorkItem
from service.queueing.token_bounds import most_proven
from service.tasks.encoding import EncodedRequest
from service.tasks.work import Work
from service.telemetry.metrics import RequestMetrics
from service.telemetry.trace import InFlight, RequestTrace

T = TypeVar("T")

_SMALLEST_ITEM = 2  # a special token before the text, and one after it


class Steps:
    """The steps that policies are made of; every request passes through `encode` and `compute`.

    Args:
        queue: the engine thread's.
        metrics: counts tokens and windows.
        timeout_s: time limit from a request's arrival to its answer.
        most_tokens: tokens that may wait in the queue.
    """

    def __init__(self, queue: BatchQueue, metrics: RequestMetrics, *, timeout_s: float, most_tokens: int) -> None:
        self.in_flight = InFlight()
        self._queue = queue
        self._input_tokens = cache(metrics.input_tokens.labels)
        self._qa_windows = cache(metrics.qa_windows.labels)
        self._timeout_s = timeout_s
        self._most_tokens = most_tokens
        self._encoding = 0
        self._encoding_tokens = 0
        self._threads = TextThreads()
        self._deliveries = Deliveries[list[Logits]]()

    def close(self) -> None:
        """Stop the text threads."""
        self._threads.close()

    def deadline(self, trace: RequestTrace) -> float:
        """Return the time on the monotonic clock at which the request times out."""
        return trace.started + self._timeout_s

    async def encode(self, trace: RequestTrace, work: Work[T], lane: Lane, deadline: float) -> EncodedRequest:
        """Refuse a request that the queue has no room for, else encode it."""
        tokens = self._least_tokens(work)
        self._queue.check_room(lane, tokens, deadline, Reserved(self._encoding, self._encoding_tokens))
        self._encoding += 1
        self._encoding_tokens += tokens
        try:
            with trace.stage("tokenize"):
                encoded = await self.in_threads(trace, work, work.encode)
        finally:
            self._encoding -= 1
            self._encoding_tokens -= tokens
        trace.tokens, trace.truncated, trace.windows = encoded.tokens, encoded.truncated, encoded.windows
        if encoded.truncated:
            work.model.note_cut()
        return encoded

    async def compute(self, trace: RequestTrace, encoded: EncodedRequest, lane: Lane, deadline: float) -> list[Logits]:
        """Queue the encoded request for one backend and wait for the logits."""
        self._input_tokens(lane.backend).observe(encoded.tokens)
        if encoded.windows is not None:
            self._qa_windows(lane.backend).observe(encoded.windows)
        return await self.infer(lane, encoded.items, deadline, trace)

    async def finish(
        self, trace: RequestTrace, work: Work[T], logits: list[Logits], instead: Mapping[int, Any] | None = None
    ) -> T:
        """Turn the logits into the answer, with others' answers `instead` of its own to the inputs at their places."""

        def finished() -> T:
            answers = work.answers(logits)
            for place, other in (instead or {}).items():
                answers[place] = other
            return work.join(answers)

        with trace.stage("postprocess"):
            return await self.in_threads(trace, work, finished)

    async def in_threads(self, trace: RequestTrace, work: Work[Any], step: Callable[[], T]) -> T:
        """Run a step on the event loop or a thread, by the length of the texts; raise if the client has left."""

        def unless_left() -> T:
            if trace.client_left:
                raise ClientClosed("the client left")
            return step()

        return await self._threads.run(unless_left, inputs=work.inputs, characters=work.characters)

    async def infer(self, lane: Lane, items: list[WorkItem], deadline: float, trace: RequestTrace) -> list[Logits]:
        """Queue the sequences and wait for the logits, the deadline or a disconnect, whichever comes first."""
        ticket = Ticket(lane, items, deadline)
        self._queue.put(ticket)
        loop = asyncio.get_running_loop()

        def overdue() -> None:
            error = DeadlineExceeded(f"no answer within {self._timeout_s:g} s (--request-timeout-s)")
            self._queue.abandon(ticket, error)

        def leave(_: asyncio.Future[None]) -> None:
            self._queue.abandon(ticket, ClientClosed("the client left"))

        timer = loop.call_at(deadline, overdue)  # the loop's clock is the monotonic one
        if trace.left is not None:
            trace.left.add_done_callback(leave)
        try:
            return await self._deliveries.wait(ticket.future)
        finally:
            timer.cancel()
            if trace.left is not None:
                trace.left.remove_done_callback(leave)
            if not ticket.future.done():
                self._queue.abandon(ticket, ClientClosed("the request was cancelled"))
            done = time.monotonic()
            started = ticket.started or done
            trace.begun |= {"queue": ticket.submitted, "infer": started}
            trace.stages |= {"queue": started - ticket.submitted, "infer": done - started}

    def _least_tokens(self, work: Work[T]) -> int:
        """Return a lower bound on the tokens without tokenizing; count words only where it could change the outcome."""
        least, room = work.inputs * _SMALLEST_ITEM, self._most_tokens
        if self._queue.waiting_tokens() + self._encoding_tokens + least + most_proven(work.characters) <= room:
            return least
        return max(least, work.least_tokens(room + 1))
