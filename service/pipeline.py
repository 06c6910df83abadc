"""From a request's texts to its predictions: admit, encode, queue, wait, post-process.

Runs on the event loop; encoding and post-processing run in a small thread pool, inference on the engine thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from torch import Tensor

from service import schemas
from service.batcher import BatchQueue, Lane, Ticket, WorkItem
from service.encoding import ClassifyWork, EncodedRequest, QAWork
from service.errors import (
    BadInput,
    ClientClosed,
    DeadlineExceeded,
    Draining,
    EmptyInput,
    EngineDead,
    NotReady,
    QueueFull,
    UnknownBackend,
    UnknownModel,
)
from service.lifecycle import Lifecycle, State
from service.metrics import ServiceMetrics
from service.registry import Model, ModelRegistry
from service.settings import Settings
from service.trace import InFlight, RequestTrace

T = TypeVar("T")

_SMALLEST_ITEM = 2  # [CLS] [SEP]


class Pipeline:
    """Answers requests of all tasks; every way out of a request leads through `_run`."""

    def __init__(
        self,
        settings: Settings,
        registry: ModelRegistry,
        queue: BatchQueue,
        lifecycle: Lifecycle,
        metrics: ServiceMetrics,
    ) -> None:
        self.in_flight = InFlight()
        self._settings = settings
        self._registry = registry
        self._queue = queue
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._encoding = 0
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="q8bert-text")

    def check_ready(self) -> None:
        """Raise NotReady, Draining or EngineDead unless requests are taken now."""
        state = self._lifecycle.state
        if state is State.READY:
            return
        if state in (State.DRAINING, State.STOPPED):
            raise Draining("the server is shutting down; send the request to another one")
        if state is State.FAILED:
            raise EngineDead("the engine has stopped; restart the server")
        raise NotReady(f"the server is {state.value}; GET /readyz says when it is ready")

    def close(self) -> None:
        """Stop the text threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def classify(
        self, request: schemas.ClassifyRequest, backend_header: str | None, trace: RequestTrace
    ) -> schemas.ClassifyResponse:
        """Classify every input of a request."""
        model = self._model("classify", request.backend, backend_header, trace)
        items = request.items()
        if not items:
            raise EmptyInput("inputs is an empty list; send at least one text")
        work = ClassifyWork(model, items, request.parameters or schemas.ClassifyParameters())
        return await self._run(trace, len(items), work.encode, work.finish)

    async def answer(
        self, request: schemas.QARequest, backend_header: str | None, trace: RequestTrace
    ) -> schemas.QAResponse:
        """Answer every question of a request."""
        model = self._model("qa", request.backend, backend_header, trace)
        items = request.items()
        if not items:
            raise EmptyInput("inputs is an empty list; send at least one question with its context")
        work = QAWork(
            model,
            items,
            request.parameters or schemas.QAParameters(),
            listed=isinstance(request.inputs, list),
            max_tokens=self._settings.max_queue_tokens,
        )
        return await self._run(trace, len(items), work.encode, work.finish)

    def _model(self, task: str, body: str | None, header: str | None, trace: RequestTrace) -> Model:
        """Choose model and backend and note both in the trace."""
        self.check_ready()
        model = self._registry.models.get(task)
        if model is None:
            raise UnknownModel(f"no checkpoint for {task} is loaded; loaded: {', '.join(self._registry.models)}")
        if body is not None and header is not None and body != header:
            raise BadInput(f"the body asks for backend {body!r}, the header x-q8bert-backend for {header!r}")
        asked = body if body is not None else header
        backend = self._settings.chosen_default if asked is None else asked
        if backend not in self._registry.backends:
            raise UnknownBackend(f"unknown backend {backend!r}; loaded: {', '.join(self._registry.backends)}")
        trace.backend, trace.model = backend, model.name
        return model

    async def _run(
        self,
        trace: RequestTrace,
        inputs: int,
        encode: Callable[[], EncodedRequest],
        finish: Callable[[list[Tensor]], T],
    ) -> T:
        assert trace.task is not None  # only task paths come here
        lane = Lane(trace.task, trace.backend)
        deadline = trace.started + self._settings.request_timeout_s
        self._queue.check_room(lane, inputs * _SMALLEST_ITEM, deadline)
        if self._queue.waiting_requests() + self._encoding >= self._settings.max_queue_requests:
            raise QueueFull(f"{self._encoding} requests are being encoded already; try later")
        with self.in_flight.track(trace):
            self._encoding += 1
            try:
                with trace.stage("tokenize"):
                    encoded = await self._in_pool(trace, encode)
            finally:
                self._encoding -= 1
            self._note(trace, encoded)
            logits = await self._infer(lane, encoded.items, deadline, trace)
            with trace.stage("postprocess"):
                return await self._in_pool(trace, partial(finish, logits))

    async def _in_pool(self, trace: RequestTrace, work: Callable[[], T]) -> T:
        def unless_left() -> T:
            if trace.client_left:
                raise ClientClosed("the client left")
            return work()

        return await asyncio.get_running_loop().run_in_executor(self._pool, unless_left)

    def _note(self, trace: RequestTrace, encoded: EncodedRequest) -> None:
        trace.tokens = sum(item.tokens for item in encoded.items)
        trace.truncated, trace.windows = encoded.truncated, encoded.windows
        self._metrics.requests.input_tokens.labels(trace.backend).observe(trace.tokens)
        if encoded.windows is not None:
            self._metrics.requests.qa_windows.labels(trace.backend).observe(encoded.windows)

    async def _infer(self, lane: Lane, items: list[WorkItem], deadline: float, trace: RequestTrace) -> list[Tensor]:
        """Queue the sequences and wait: for the engine, the deadline or the client's leaving, whichever is first."""
        ticket = Ticket(lane, items, deadline)
        self._queue.put(ticket)
        loop = asyncio.get_running_loop()
        overdue = DeadlineExceeded(f"no answer within {self._settings.request_timeout_s:g} s (--request-timeout-s)")
        timer = loop.call_later(max(0.0, deadline - time.monotonic()), self._queue.abandon, ticket, overdue)
        if trace.left is not None:
            trace.left.add_done_callback(
                lambda left: None if left.cancelled() else self._queue.abandon(ticket, ClientClosed("the client left"))
            )
        try:
            return await asyncio.wrap_future(ticket.future)
        finally:
            timer.cancel()
            self._queue.abandon(ticket, ClientClosed("the request was cancelled"))
            done = time.monotonic()
            started = ticket.started or done
            trace.stages["queue"] = started - ticket.submitted
            trace.stages["infer"] = done - started
