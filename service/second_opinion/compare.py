"""The answer of /compare: two variants' answers to one request, and how they differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from service.errors import BadInput
from service.models.model import LoadedEngine
from service.models.variant import Variant
from service.tasks import schemas
from service.tasks.verdict import compare_answers, compare_scores
from service.telemetry.trace import RequestTrace

T = TypeVar("T")

FLOAT, INTEGER = BACKENDS = ("fp32", "int8")
"""In the order in which they are shown; the one that runs first alternates."""


@dataclass(frozen=True)
class Answered(Generic[T]):
    """A variant's answer, its share of the request's time, and its engine, which may be unloaded by now."""

    variant: Variant
    answer: T
    share: RequestTrace
    loaded: LoadedEngine


Pair = tuple[Answered[T], Answered[T]]


def check_comparable(first: Variant, second: Variant) -> None:
    """Refuse variants whose answers cannot be compared.

    Raises:
        BadInput: they are one and the same, or answer with other labels.
    """
    if first.lane == second.lane:
        raise BadInput(f"variants names {first.shown_as!r} twice; name two different ones")
    ours, theirs = (variant.model.checkpoint for variant in (first, second))
    if set(ours.labels) != set(theirs.labels):
        raise BadInput(
            f"{first.shown_as!r} answers {_some(ours.labels)}, {second.shown_as!r} {_some(theirs.labels)}: variants "
            "can be compared if they have the same labels"
        )


def compare_labels(pair: Pair[schemas.ClassifyResponse]) -> schemas.ClassifyComparison:
    """Compare two variants' scored labels of one text."""
    first, second = pair
    found = compare_scores(first.answer[0], second.answer[0])
    if found.agree is None:
        delta = schemas.NumberDelta(abs_diff=found.abs_diff)
    else:
        delta = schemas.LabelDelta(max_abs_prob=found.abs_diff)
    return schemas.ClassifyComparison(
        task="classify",
        model=first.variant.model.name,
        agree=found.agree,
        delta=delta,
        speedup=_speedup(first.share, second.share),
        results={
            one.variant.shown_as: schemas.ClassifyShare(answer=one.answer, **_facts(one.loaded, one.share))
            for one in pair
        },
    )


def compare_spans(pair: Pair[schemas.AnswerSpan]) -> schemas.QAComparison:
    """Compare two variants' answers to one question."""
    first, second = pair
    found = compare_answers(first.answer, second.answer)
    assert found.agree is not None
    assert found.span_f1 is not None
    return schemas.QAComparison(
        task="qa",
        model=first.variant.model.name,
        agree=found.agree,
        delta=schemas.SpanDelta(span_f1=found.span_f1),
        speedup=_speedup(first.share, second.share),
        results={
            one.variant.shown_as: schemas.QAShare(answer=one.answer, **_facts(one.loaded, one.share)) for one in pair
        },
    )


def _facts(loaded: LoadedEngine, share: RequestTrace) -> schemas.ShareFacts:
    return {
        "queue_ms": _ms(share.stages["queue"]),
        "inference_ms": _ms(share.stages["infer"]),
        "kernel": loaded.engine.kernel,
        "bits": str(loaded.engine.describe()["bits"]),
        "memory_bytes": schemas.MemoryBytes(**loaded.memory_bytes),
    }


def _speedup(first: RequestTrace, second: RequestTrace) -> float:
    """Return the ratio of the inference times, which are zero only if the clock is coarse."""
    return round(first.stages["infer"] / max(second.stages["infer"], 1e-6), 3)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _some(labels: tuple[str, ...]) -> str:
    return f"{', '.join(labels[:5])}{', ...' if len(labels) > 5 else ''}"
