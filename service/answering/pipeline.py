"""From a request's texts to its predictions: admit, encode, queue, wait, post-process.

Runs on the event loop; encoding and post-processing of all but short texts run in a small thread pool, inference on the
engine thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from itertools import accumulate, count
from typing import Any, TypeVar, cast

from torch import Tensor

from service.answering.route import Route
from service.answering.text_threads import TextThreads
from service.answering.turns import Turns
from service.errors import (
    BadInput,
    ClientClosed,
    DeadlineExceeded,
    Draining,
    EmptyInput,
    EngineDead,
    NotReady,
    UnknownBackend,
)
from service.lifecycle import Lifecycle, State
from service.models.model import Model
from service.models.registry import ModelRegistry
from service.queueing.batcher import BatchQueue, Lane, Reserved, Ticket, WorkItem
from service.queueing.token_bounds import most_proven
from service.second_opinion.cascade import FIRST, SECOND, Cascade
from service.second_opinion.compare import BACKENDS, compare_labels, compare_spans
from service.second_opinion.shadow import Sample, Shadow
from service.settings import Settings
from service.tasks import schemas
from service.tasks.encoding import OWN_WORDS, USUAL_CUT, BodyWords, ClassifyWork, Cut, EncodedRequest, QAWork
from service.tasks.verdict import compare_verdicts
from service.tasks.work import Work
from service.telemetry.cascade_metrics import AUTO, CHANGED, CONFIRMED, KEPT
from service.telemetry.metrics import ServiceMetrics
from service.telemetry.trace import InFlight, RequestTrace

T = TypeVar("T")

_SMALLEST_ITEM = 2  # [CLS] [SEP]


class Pipeline:
    """Answers requests of all tasks; every way out of a request leads through `_encode` and `_compute`."""

    def __init__(
        self,
        settings: Settings,
        registry: ModelRegistry,
        queue: BatchQueue,
        lifecycle: Lifecycle,
        metrics: ServiceMetrics,
        shadow: Shadow,
        cascade: Cascade,
    ) -> None:
        self.in_flight = InFlight()
        self._settings = settings
        self._registry = registry
        self._queue = queue
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._shadow = shadow
        self._cascade = cascade
        self._encoding = 0
        self._encoding_tokens = 0
        self._comparisons = count()
        self._threads = TextThreads()
        self._turns = Turns()

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
        self._threads.close()

    async def classify(
        self,
        request: schemas.ClassifyRequest,
        backend_header: str | None,
        trace: RequestTrace,
        words: BodyWords = OWN_WORDS,
        cut: Cut = USUAL_CUT,
    ) -> schemas.ClassifyResponse:
        """Classify every input of a request; errors name its fields with the route's words."""
        route = self._route("classify", request, backend_header, trace)
        items = request.items()
        if not items:
            raise EmptyInput("inputs is an empty list; send at least one text")
        work = ClassifyWork(route.model, items, request.parameters or schemas.ClassifyParameters(), words, cut)
        return await self._run(trace, work, route)

    async def answer(
        self, request: schemas.QARequest, backend_header: str | None, trace: RequestTrace
    ) -> schemas.QAResponse:
        """Answer every question of a request."""
        route = self._route("qa", request, backend_header, trace)
        items = request.items()
        if not items:
            raise EmptyInput("inputs is an empty list; send at least one question with its context")
        work = QAWork(
            route.model,
            items,
            request.parameters or schemas.QAParameters(),
            listed=isinstance(request.inputs, list),
            max_tokens=self._settings.max_queue_tokens,
        )
        return await self._run(trace, work, route)

    async def compare(
        self, request: schemas.CompareRequest, trace: RequestTrace
    ) -> schemas.ClassifyComparison | schemas.QAComparison:
        """Answer one text or question on both backends, one after the other, from the same token ids."""
        item = request.item()
        model = self._compared_model("classify" if isinstance(item, str) else "qa", request.model, trace)
        with self._registry.in_use(model):
            if isinstance(item, str):
                work = ClassifyWork(model, [(item, None)], schemas.ClassifyParameters())
                answers = await self._run_shares(trace, work)
                return compare_labels(model, answers, trace.by_backend())
            limit = self._settings.max_queue_tokens
            work = QAWork(model, [item], schemas.QAParameters(), listed=False, max_tokens=limit)
            # one question with top_k 1 has one answer
            spans = cast("dict[str, schemas.AnswerSpan]", await self._run_shares(trace, work))
            return compare_spans(model, spans, trace.by_backend())

    def _route(
        self, task: str, request: schemas.ClassifyRequest | schemas.QARequest, header: str | None, trace: RequestTrace
    ) -> Route:
        """Choose model and backend, and note both in the trace."""
        model, body = self._loaded_model(task, request.model), request.backend
        if body is not None and header is not None and body != header:
            raise BadInput(f"the body asks for backend {body!r}, the header x-q8bert-backend for {header!r}")
        asked = body if body is not None else header
        backend = self._settings.chosen_default if asked is None else asked
        if backend == AUTO:
            self._cascade.check(model)
        else:
            self._check_backend(backend)
        trace.backend, trace.model = backend, model.name
        return Route(model, backend)

    def _compared_model(self, task: str, name: str | None, trace: RequestTrace) -> Model:
        """Choose the model of a request that both backends answer."""
        model = self._loaded_model(task, name)
        for backend in BACKENDS:
            self._check_backend(backend)
        trace.model = model.name
        return model

    def _loaded_model(self, task: str, name: str | None) -> Model:
        self.check_ready()
        return self._registry.choose(task, name)

    def _check_backend(self, backend: str) -> None:
        if backend not in self._registry.backends:
            raise UnknownBackend(f"unknown backend {backend!r}; loaded: {', '.join(self._registry.backends)}")

    async def _run(self, trace: RequestTrace, work: Work[T], route: Route) -> T:
        """Answer on the route's backend."""
        auto, model = route.backend == AUTO, route.model
        lane = model.lane(FIRST if auto else route.backend)
        deadline = self._deadline(trace)
        with self._registry.in_use(model), self.in_flight.track(trace):
            encoded = await self._encode(trace, work, lane, deadline)
            logits = await self._compute(trace, encoded, lane, deadline)
            surer = await self._escalate(trace, work, model, encoded, logits, deadline) if auto else logits
            answer = await self._finish(trace, work, surer)
        self._shadow.offer(Sample(trace.request_id, work, encoded.items, lane, logits))
        return answer

    async def _escalate(
        self,
        trace: RequestTrace,
        work: Work[T],
        model: Model,
        encoded: EncodedRequest,
        logits: list[Tensor],
        deadline: float,
    ) -> list[Tensor]:
        """Ask fp32 again about the inputs of which int8 is not sure; return the logits that count, in order."""
        verdicts = await self._in_threads(trace, work, partial(work.verdicts, logits))
        weak = self._cascade.weak(model, verdicts)
        trace.answered_by, trace.escalated = SECOND if weak else FIRST, len(weak)
        count = self._metrics.cascade.inputs.labels
        count(work.task, KEPT).inc(len(verdicts) - len(weak))
        if not weak:
            return logits
        ends = list(accumulate(work.sequences()))
        again = [n for place in weak for n in range(ends[place] - work.sequences()[place], ends[place])]
        second = trace.part()
        items = [encoded.items[n] for n in again]
        found = dict(zip(again, await self._infer(model.lane(SECOND), items, deadline, second), strict=True))
        trace.close_share(second)
        merged = [found.get(n, row) for n, row in enumerate(logits)]
        surer = await self._in_threads(trace, work, partial(work.verdicts, merged))
        for place in weak:
            same = compare_verdicts(surer[place], verdicts[place]).agree
            count(work.task, CONFIRMED if same else CHANGED).inc()
        return merged

    async def _run_shares(self, trace: RequestTrace, work: Work[T]) -> dict[str, T]:
        """Encode once and answer on one backend after the other, each waiting in the queue by itself.

        At the same time they would take the CPUs from each other, and their times would say nothing.
        """
        deadline = self._deadline(trace)
        # the first wakes threads and CPUs for the second; taking turns, neither is favoured on average
        order = BACKENDS if next(self._comparisons) % 2 == 0 else BACKENDS[::-1]
        with self.in_flight.track(trace):
            encoded = await self._encode(trace, work, work.model.lane(order[0]), deadline)
        answers: dict[str, T] = {}
        for backend in order:
            share = trace.share(backend)
            with self.in_flight.track(share):
                logits = await self._compute(share, encoded, work.model.lane(backend), deadline)
                answers[backend] = await self._finish(share, work, logits)
            trace.close_share(share)
        return {backend: answers[backend] for backend in BACKENDS}

    def _deadline(self, trace: RequestTrace) -> float:
        return trace.started + self._settings.request_timeout_s

    async def _encode(self, trace: RequestTrace, work: Work[T], lane: Lane, deadline: float) -> EncodedRequest:
        """Refuse what the queue has no room for, else encode."""
        tokens = self._least_tokens(work)
        self._queue.check_room(lane, tokens, deadline, Reserved(self._encoding, self._encoding_tokens))
        self._encoding += 1
        self._encoding_tokens += tokens
        try:
            with trace.stage("tokenize"):
                encoded = await self._in_threads(trace, work, work.encode)
        finally:
            self._encoding -= 1
            self._encoding_tokens -= tokens
        trace.tokens, trace.truncated, trace.windows = encoded.tokens, encoded.truncated, encoded.windows
        if encoded.truncated:
            work.model.note_cut()
        return encoded

    async def _compute(self, trace: RequestTrace, encoded: EncodedRequest, lane: Lane, deadline: float) -> list[Tensor]:
        """Queue the encoded request for one backend and wait for the logits."""
        self._metrics.requests.input_tokens.labels(lane.backend).observe(encoded.tokens)
        if encoded.windows is not None:
            self._metrics.requests.qa_windows.labels(lane.backend).observe(encoded.windows)
        return await self._infer(lane, encoded.items, deadline, trace)

    async def _finish(self, trace: RequestTrace, work: Work[T], logits: list[Tensor]) -> T:
        """Turn the logits into the answer."""
        await self._turns.wait()  # a batch ends for many requests at once
        with trace.stage("postprocess"):
            return await self._in_threads(trace, work, partial(work.finish, logits))

    def _least_tokens(self, work: Work[T]) -> int:
        """Count tokens that are proven before tokenizing; words only where their number could matter."""
        least, room = work.inputs * _SMALLEST_ITEM, self._settings.max_queue_tokens
        if self._queue.waiting_tokens() + self._encoding_tokens + least + most_proven(work.characters) <= room:
            return least
        return max(least, work.least_tokens(room + 1))

    async def _in_threads(self, trace: RequestTrace, work: Work[Any], step: Callable[[], T]) -> T:
        def unless_left() -> T:
            if trace.client_left:
                raise ClientClosed("the client left")
            return step()

        return await self._threads.run(unless_left, inputs=work.inputs, characters=work.characters)

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
            trace.begun |= {"queue": ticket.submitted, "infer": started}
            trace.stages |= {"queue": started - ticket.submitted, "infer": done - started}
