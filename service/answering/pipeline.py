"""The pipeline from a request's body to its answer: chooses model and policy, and runs them."""

from __future__ import annotations

from typing import TypeVar, cast

from service.answering.policies import Cascaded, OneBackend, TwoVariants
from service.answering.route import Route
from service.answering.steps import Steps
from service.errors import (
    BadInput,
    Draining,
    EmptyInput,
    EngineDead,
    NotReady,
)
from service.lifecycle import Lifecycle, State
from service.models.model import Model
from service.models.registry import ModelRegistry
from service.models.variant import Variant, check_backend, find_variant
from service.queueing.batcher import BatchQueue
from service.second_opinion.cascade import Cascade
from service.second_opinion.compare import (
    BACKENDS,
    FLOAT,
    INTEGER,
    Pair,
    check_comparable,
    compare_labels,
    compare_spans,
)
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
        self._two = TwoVariants(self._steps, registry)

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
        """Answer one text or question on two variants, one after the other."""
        item = request.item()
        pair = self._compared("classify" if isinstance(item, str) else "qa", request)
        models = dict.fromkeys(variant.model for variant in pair)
        trace.model = ", ".join(model.name for model in models)
        if isinstance(item, str):
            texts = {model: ClassifyWork(model, [(item, None)], schemas.ClassifyParameters()) for model in models}
            return compare_labels(await self._two.answers(trace, [(one, texts[one.model]) for one in pair]))
        limit = self._settings.max_queue_tokens
        questions = {
            model: QAWork(model, [item], schemas.QAParameters(), listed=False, max_tokens=limit) for model in models
        }
        # one question with top_k 1 gets one answer, not a list
        answers = await self._two.answers(trace, [(one, questions[one.model]) for one in pair])
        return compare_spans(cast("Pair[schemas.AnswerSpan]", answers))

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
            self._cascade.second(model)  # refuses what has none
        else:
            check_backend(self._registry, backend)
        trace.backend, trace.model = backend, model.name
        return Route(model, backend)

    def _compared(self, task: str, request: schemas.CompareRequest) -> tuple[Variant, Variant]:
        """Choose the variants that answer: those that a request names, or both backends of its model."""
        if request.variants is None:
            model = self._loaded_model(task, request.model)
            for backend in BACKENDS:
                check_backend(self._registry, backend)
            return Variant(model, FLOAT, FLOAT), Variant(model, INTEGER, INTEGER)
        self.check_ready()
        first, second = (find_variant(self._registry, task, name) for name in request.variants)
        check_comparable(first, second)
        return first, second

    def _loaded_model(self, task: str, name: str | None) -> Model:
        self.check_ready()
        return self._registry.choose(task, name)

    async def _run(self, trace: RequestTrace, work: Work[T], route: Route) -> T:
        """Answer as the route says."""
        if route.backend == AUTO:
            return await self._cascaded.answer(trace, work)
        return await self._one.answer(trace, work, route.backend)
