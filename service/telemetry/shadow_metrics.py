"""The Prometheus metrics of the shadow comparison."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from service.queueing.batcher import LoadedModel
from service.tasks.verdict import Comparison

RESULTS = ("agree", "disagree")
QUEUE_FULL, BUSY, UNLOADED, DRAINING, FAILED = DROPS = ("queue_full", "busy", "unloaded", "draining", "failed")
"""Reasons: the queue of samples is full; no idle moment came in time; the model was swapped or unloaded; the service is
shutting down; the engine failed."""

_MODEL = ("task", "model")
_DIFFERENCES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.99, 1.0)


class ShadowMetrics:
    """Metrics of the comparison of sampled requests."""

    def __init__(self, registry: CollectorRegistry) -> None:
        r = registry
        self.comparisons = Counter(
            "q8bert_shadow_comparisons",
            "Inputs answered by both backends with labels or spans.",
            (*_MODEL, "result"),
            registry=r,
        )
        self.abs_diff = Histogram(
            "q8bert_shadow_abs_diff",
            "Largest difference of a score, or of the predicted numbers.",
            _MODEL,
            buckets=_DIFFERENCES,
            registry=r,
        )
        self.span_f1 = Histogram(
            "q8bert_shadow_span_f1", "F1 of the two spans' words.", _MODEL, buckets=_SHARES, registry=r
        )
        self.dropped = Counter(
            "q8bert_shadow_dropped", "Sampled requests that were not compared.", ("reason",), registry=r
        )
        for reason in DROPS:
            self.dropped.labels(reason)

    def begin(self, model: LoadedModel) -> None:
        """Create a model's series, at zero."""
        labels = model.task, model.name
        for result in RESULTS:
            self.comparisons.labels(*labels, result)
        self.abs_diff.labels(*labels)
        if model.task == "qa":
            self.span_f1.labels(*labels)

    def end(self, model: LoadedModel) -> None:
        """Remove a model's series."""
        labels = model.task, model.name
        for result in RESULTS:
            self.comparisons.remove(*labels, result)
        self.abs_diff.remove(*labels)
        if model.task == "qa":
            self.span_f1.remove(*labels)

    def dropped_counts(self) -> dict[str, int]:
        """Return how many sampled requests were dropped since start, by reason."""
        samples = [sample for family in self.dropped.collect() for sample in family.samples]
        return {sample.labels["reason"]: int(sample.value) for sample in samples if sample.name.endswith("_total")}

    def observe(self, model: LoadedModel, found: Comparison) -> None:
        """Count one comparison of a model whose series exist."""
        labels = model.task, model.name
        if found.agree is not None:
            self.comparisons.labels(*labels, RESULTS[0] if found.agree else RESULTS[1]).inc()
        self.abs_diff.labels(*labels).observe(found.abs_diff)
        if found.span_f1 is not None:
            self.span_f1.labels(*labels).observe(found.span_f1)
