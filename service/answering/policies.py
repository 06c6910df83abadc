"""Which variants answer a request: the one it asks for, int8 with a second where it is not sure, or any two."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from itertools import accumulate, count
from typing import Any, NamedTuple, TypeVar

from service.answering.steps import Steps
from service.models.registry import ModelRegistry
from service.models.variant import Variant, named_errors
from service.second_opinion.cascade import FIRST, Cascade
from service.second_opinion.compare import Answered, Pair
from service.second_opinion.shadow import Sample, Shadow
from service.tasks.encoding import EncodedRequest
from service.tasks.verdict import Verdict, compare_verdicts
from service.tasks.work import Work
from service.telemetry.cascade_metrics import CHANGED, CONFIRMED, KEPT, CascadeMetrics
from service.telemetry.trace import RequestTrace

T = TypeVar("T")


class OneBackend:
    """One backend answers; its result is offered to the shadow comparison.

    Args:
        steps: the steps of each request.
        registry: keeps a model loaded while a request needs it.
        shadow: samples the answered requests.
    """

    def __init__(self, steps: Steps, registry: ModelRegistry, shadow: Shadow) -> None:
        self._steps = steps
        self._registry = registry
        self._shadow = shadow

    async def answer(self, trace: RequestTrace, work: Work[T], backend: str) -> T:
        """Answer a request."""
        steps, lane, deadline = self._steps, work.model.lane(backend), self._steps.deadline(trace)
        with self._registry.in_use(work.model), steps.in_flight.track(trace):
            encoded = await steps.encode(trace, work, lane, deadline)
            logits = await steps.compute(trace, encoded, lane, deadline)
            answer = await steps.finish(trace, work, logits)
        self._shadow.offer(Sample(trace.request_id, work, encoded.items, lane, logits))
        return answer


class Cascaded:
    """int8 answers first, and a second variant again where int8 is not sure: ``backend=auto``.

    Args:
        steps: the steps of each request.
        registry: keeps both models loaded while a request may need them.
        shadow: samples the answered requests, with int8's answers.
        cascade: says where int8 is not sure, and who is asked then.
        metrics: counts the results of asking.
    """

    def __init__(
        self, steps: Steps, registry: ModelRegistry, shadow: Shadow, cascade: Cascade, metrics: CascadeMetrics
    ) -> None:
        self._steps = steps
        self._registry = registry
        self._shadow = shadow
        self._cascade = cascade
        self._metrics = metrics

    async def answer(self, trace: RequestTrace, work: Work[T]) -> T:
        """Answer a request.

        Raises:
            UnknownBackend: the model has no threshold, or the second variant is not served.
        """
        steps, lane, deadline = self._steps, work.model.lane(FIRST), self._steps.deadline(trace)
        second = self._cascade.second(work.model)
        with ExitStack() as held:
            for model in (work.model, second.model):
                held.enter_context(self._registry.in_use(model))
            held.enter_context(steps.in_flight.track(trace))
            encoded = await steps.encode(trace, work, lane, deadline)
            logits = await steps.compute(trace, encoded, lane, deadline)
            verdicts = await steps.in_threads(trace, work, partial(work.verdicts, logits))
            weak = self._cascade.weak(work.model, verdicts)
            trace.answered_by, trace.escalated = second.shown_as if weak else FIRST, len(weak)
            self._metrics.count(work.model.loaded, second.name, KEPT, len(verdicts) - len(weak))
            instead: dict[int, Any] = {}
            if weak:
                again = await self._ask(trace, work, encoded, second, weak, deadline)
                for place, verdict in zip(weak, again.verdicts, strict=True):
                    same = compare_verdicts(verdict, verdicts[place]).agree
                    self._metrics.count(work.model.loaded, second.name, CONFIRMED if same else CHANGED)
                instead = dict(zip(weak, again.answers, strict=True))
            answer = await steps.finish(trace, work, logits, instead)
        self._shadow.offer(Sample(trace.request_id, work, encoded.items, lane, logits))
        return answer

    async def _ask(
        self,
        trace: RequestTrace,
        work: Work[T],
        encoded: EncodedRequest,
        second: Variant,
        weak: Sequence[int],
        deadline: float,
    ) -> _Again:
        """Ask the second variant about some of the inputs, which another model reads with a tokenizer of its own."""
        steps = self._steps
        if second.model is work.model:
            again, ends = work.again(work.model, weak), list(accumulate(work.sequences()))
            places = [n for place in weak for n in range(ends[place] - work.sequences()[place], ends[place])]
            items = [encoded.items[n] for n in places]
        else:
            with named_errors(second), trace.stage("tokenize"):
                again = work.again(second.model, weak)
                found = await steps.in_threads(trace, again, again.encode)
            items = found.items
            if found.truncated:
                second.model.note_cut()
                trace.truncated = max(trace.truncated or 0, found.truncated)
        share = trace.part()
        logits = await steps.infer(second.lane, items, deadline, share)
        trace.close_share(share)
        return await steps.in_threads(trace, again, lambda: _Again(again.verdicts(logits), again.answers(logits)))


class _Again(NamedTuple):
    """What the second variant says about the inputs that it was asked about."""

    verdicts: list[Verdict]
    answers: list[Any]


class TwoVariants:
    """Two variants answer the same input, one after the other.

    Args:
        steps: the steps of each request.
        registry: keeps the models loaded while a request needs them.
    """

    def __init__(self, steps: Steps, registry: ModelRegistry) -> None:
        self._steps = steps
        self._registry = registry
        self._comparisons = count()

    async def answers(self, trace: RequestTrace, asked: Sequence[tuple[Variant, Work[T]]]) -> Pair[T]:
        """Encode, then queue and answer on one variant after the other.

        At the same time they would compete for the CPUs, and their times would mean nothing.

        Args:
            trace: the request's.
            asked: two variants, each with the request as its model encodes it: one and the same for one model.
        """
        deadline = self._steps.deadline(trace)
        # the first wakes threads and CPUs for the second; alternating, neither is favoured on average
        order = asked if next(self._comparisons) % 2 == 0 else asked[::-1]
        encoded: dict[Work[T], EncodedRequest] = {}
        answered: dict[str, Answered[T]] = {}
        with ExitStack() as held:
            for variant, _ in order:
                held.enter_context(self._registry.in_use(variant.model))
            with self._steps.in_flight.track(trace):
                for variant, work in order:
                    if work not in encoded:
                        encoded[work] = await self._steps.encode(trace, work, variant.lane, deadline)
            for variant, work in order:
                share = trace.share(variant.backend)
                with self._steps.in_flight.track(share):
                    logits = await self._steps.compute(share, encoded[work], variant.lane, deadline)
                    answer = await self._steps.finish(share, work, logits)
                trace.close_share(share)
                answered[variant.shown_as] = Answered(variant, answer, share, variant.loaded)
        first, second = (answered[variant.shown_as] for variant, _ in asked)
        return first, second
