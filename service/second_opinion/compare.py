"""The answer of /compare: both backends' answers to one request, and how they differ."""

from __future__ import annotations

from collections.abc import Mapping

from service.models.model import LoadedEngine, Model
from service.tasks import schemas
from service.tasks.verdict import compare_answers, compare_scores
from service.telemetry.trace import RequestTrace

FLOAT, INTEGER = BACKENDS = ("fp32", "int8")
"""In the order in which they are shown; the one that runs first alternates."""


def compare_labels(
    model: Model,
    answers: Mapping[str, schemas.ClassifyResponse],
    shares: Mapping[str, RequestTrace],
) -> schemas.ClassifyComparison:
    """Compare both backends' scored labels of one text."""
    results = {
        backend: schemas.ClassifyShare(answer=answer, **_facts(model.engines[backend], shares[backend]))
        for backend, answer in answers.items()
    }
    ([fp32], [int8]) = (answers[backend] for backend in BACKENDS)
    found = compare_scores(fp32, int8)
    if found.agree is None:
        delta = schemas.NumberDelta(abs_diff=found.abs_diff)
    else:
        delta = schemas.LabelDelta(max_abs_prob=found.abs_diff)
    return schemas.ClassifyComparison(
        task="classify",
        model=model.name,
        agree=found.agree,
        delta=delta,
        speedup=_speedup(shares),
        results=results,
    )


def compare_spans(
    model: Model, answers: Mapping[str, schemas.AnswerSpan], shares: Mapping[str, RequestTrace]
) -> schemas.QAComparison:
    """Compare both backends' answers to one question."""
    results = {
        backend: schemas.QAShare(answer=answer, **_facts(model.engines[backend], shares[backend]))
        for backend, answer in answers.items()
    }
    found = compare_answers(answers[FLOAT], answers[INTEGER])
    assert found.agree is not None
    assert found.span_f1 is not None
    return schemas.QAComparison(
        task="qa",
        model=model.name,
        agree=found.agree,
        delta=schemas.SpanDelta(span_f1=found.span_f1),
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
    """Return the ratio of the inference times, which are zero only if the clock is coarse."""
    return round(shares[FLOAT].stages["infer"] / max(shares[INTEGER].stages["infer"], 1e-6), 3)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
