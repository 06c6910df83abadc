"""Which backends answer a request: the one it asks for, int8 with fp32 where it is not sure, or two variants."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from itertools import accumulate, count
from typing import TypeVar

from q8core.arrays import Logits
from service.answering.steps import Steps
from service.models.registry import ModelRegistry
from service.models.variant import Variant
from service.second_opinion.cascade import FIRST, SECOND, Cascade
from service.second_opinion.compare import Answered, Pair
from service.second_opinion.shadow import Sample, Shadow
from service.tasks.encoding import EncodedRequest
from service.tasks.verdict import compare_verdicts
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
            surer = await self._reconsider(trace, work, encoded, logits, deadline)
            answer = await steps.finish(trace, work, surer)
        self._shadow.offer(Sample(trace.request_id, work, encoded.items, lane, logits))
        return answer

    async def _reconsider(
        self, trace: RequestTrace, work: Work[T], encoded: EncodedRequest, logits: list[Logits], deadline: float
    ) -> list[Logits]:
        """Return the logits to answer with: here, those of the one backend."""
        return logits


class Cascaded(OneBackend):
    """int8 answers first, and fp32 again where int8 is not sure: ``backend=auto``.

    Args:
        steps: as `OneBackend`.
        registry: as `OneBackend`.
        shadow: as `OneBackend`.
        cascade: says where int8 is not sure.
        metrics: counts the results of asking fp32.
    """

    def __init__(
        self, steps: Steps, registry: ModelRegistry, shadow: Shadow, cascade: Cascade, metrics: CascadeMetrics
    ) -> None:
        super().__init__(steps, registry, shadow)
        self._cascade = cascade
        self._metrics = metrics

    async def _reconsider(
        self, trace: RequestTrace, work: Work[T], encoded: EncodedRequest, logits: list[Logits], deadline: float
    ) -> list[Logits]:
        """Ask fp32 about the inputs of which int8 is not sure; return the logits to answer with, in input order."""
        verdicts = await self._steps.in_threads(trace, work, partial(work.verdicts, logits))
        weak = self._cascade.weak(work.model, verdicts)
        trace.answered_by, trace.escalated = SECOND if weak else FIRST, len(weak)
        counted = self._metrics.inputs.labels
        counted(work.task, KEPT).inc(len(verdicts) - len(weak))
        if not weak:
            return logits
        ends = list(accumulate(work.sequences()))
        again = [n for place in weak for n in range(ends[place] - work.sequences()[place], ends[place])]
        second = trace.part()
        items = [encoded.items[n] for n in again]
        logits_again = await self._steps.infer(work.model.lane(SECOND), items, deadline, second)
        found = dict(zip(again, logits_again, strict=True))
        trace.close_share(second)
        merged = [found.get(n, row) for n, row in enumerate(logits)]
        surer = await self._steps.in_threads(trace, work, partial(work.verdicts, merged))
        for place in weak:
            same = compare_verdicts(surer[place], verdicts[place]).agree
            counted(work.task, CONFIRMED if same else CHANGED).inc()
        return merged


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
