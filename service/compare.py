"""Two backends' answers to one request, side by side: what /compare says beyond the answers themselves."""

from __future__ import annotations

from collections.abc import Mapping

from q8core.tasks.metrics import token_f1
from service import schemas
from service.registry import LoadedEngine, Model
from service.trace import RequestTrace

FLOAT, INTEGER = BACKENDS = ("fp32", "int8")
"""In the order in which they are shown; which of them runs first alternates."""


def compare_labels(
    model: Model,
    answers: Mapping[str, schemas.ClassifyResponse],
    shares: Mapping[str, RequestTrace],
) -> schemas.ClassifyComparison:
    """Put the scored labels of one text beside each other."""
    results = {
        backend: schemas.ClassifyShare(answer=answer, **_facts(model.engines[backend], shares[backend]))
        for backend, answer in answers.items()
    }
    ([first], [second]) = (answers[backend] for backend in BACKENDS)
    scores = {entry.label: entry.score for entry in second}
    return schemas.ClassifyComparison(
        task="classify",
        model=model.name,
        agree=first[0].label == second[0].label,
        delta=schemas.LabelDelta(max_abs_prob=max(abs(entry.score - scores[entry.label]) for entry in first)),
        speedup=_speedup(shares),
        results=results,
    )


def compare_spans(
    model: Model, answers: Mapping[str, schemas.AnswerSpan], shares: Mapping[str, RequestTrace]
) -> schemas.QAComparison:
    """Put the answers to one question beside each other."""
    results = {
        backend: schemas.QAShare(answer=answer, **_facts(model.engines[backend], shares[backend]))
        for backend, answer in answers.items()
    }
    first, second = (answers[backend] for backend in BACKENDS)
    return schemas.QAComparison(
        task="qa",
        model=model.name,
        agree=(first.start, first.end) == (second.start, second.end),
        delta=schemas.SpanDelta(span_f1=token_f1(second.answer, first.answer)),
        speedup=_speedup(shares),
        results=results,
    )


def _facts(loaded: LoadedEngine, share: RequestTrace) -> schemas.ShareFacts:
    return {
        "queue_ms": _ms(share.stages["queue"]),
        "inference_ms": _ms(share.stages["infer"]),
        "kernel": loaded.engine.kernel,
        "memory_bytes": schemas.MemoryBytes(**loaded.memory_bytes),
    }


def _speedup(shares: Mapping[str, RequestTrace]) -> float:
    """Ratio of the inference times; they end on the event loop, so that none is zero but for a coarse clock."""
    return round(shares[FLOAT].stages["infer"] / max(shares[INTEGER].stages["infer"], 1e-6), 3)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
