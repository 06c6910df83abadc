"""The pipeline from a request's body to its answer: chooses model and policy, and runs them."""

from __future__ import annotations

from typing import TypeVar, cast

from service.answering.policies import BothBackends, Cascaded, OneBackend
from service.answering.route import Route
from service.answering.steps import Steps
from service.errors import (
    BadInput,
    Draining,
    EmptyInput,
    EngineDead,
    NotReady,
    UnknownBackend,
)
from service.lifecycle import Lifecycle, State
from service.models.model import Model
from service.models.registry import ModelRegistry
from service.queueing.batcher import BatchQueue
from service.second_opinion.cascade import FIRST, Cascade
from service.second_opinion.compare import BACKENDS, compare_labels, compare_spans
from service.second_opinion.shadow import Shadow
from service.settings import Settings
from service.tasks import schemas
from service.tasks.encoding import OWN_WORDS, USUAL_CUT, BodyWords, ClassifyWork, Cut, QAWork
from service.tasks.work import Work
from service.telemetry.cascade_metrics import AUTO
from service.telemetry.metrics import ServiceMetrics
from service.telemetry.trace import RequestTrace

T = TypeVar("T")


class Pipeline:
    """Answers requests of all tasks."""

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
        self._settings = settings
        self._registry = registry
        self._lifecycle = lifecycle
        self._cascade = cascade
        self._steps = Steps(
            queue,
            metrics.requests,
            timeout_s=settings.request_timeout_s,
            most_tokens=settings.max_queue_tokens,
        )
        self.in_flight = self._steps.in_flight
        self._one = OneBackend(self._steps, registry, shadow)
        self._cascaded = Cascaded(self._steps, registry, shadow, cascade, metrics.cascade)
        self._both = BothBackends(self._steps)

    def check_ready(self) -> None:
        """Raise NotReady, Draining or EngineDead unless the service takes requests now."""
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
        self._steps.close()

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
                answers = await self._both.answers(trace, work)
                return compare_labels(model, answers, trace.by_backend())
            limit = self._settings.max_queue_tokens
            work = QAWork(model, [item], schemas.QAParameters(), listed=False, max_tokens=limit)
            # one question with top_k 1 gets one answer, not a list
            spans = cast("dict[str, schemas.AnswerSpan]", await self._both.answers(trace, work))
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
        """Answer as the route says."""
        policy = self._cascaded if route.backend == AUTO else self._one
        return await policy.answer(trace, work, FIRST if route.backend == AUTO else route.backend)
