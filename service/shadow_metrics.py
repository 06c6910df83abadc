"""The Prometheus metrics of the shadow comparison."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram

from service.verdict import Comparison

RESULTS = ("agree", "disagree")
QUEUE_FULL, BUSY, DRAINING, FAILED = DROPS = ("queue_full", "busy", "draining", "failed")
"""Reasons: as many as are kept wait already; no idle moment came in time; shutting down; the engine failed on it."""

_DIFFERENCES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.99, 1.0)


class ShadowMetrics:
    """What the comparison of sampled requests found."""

    def __init__(self, registry: CollectorRegistry) -> None:
        r = registry
        self.comparisons = Counter(
            "q8bert_shadow_comparisons", "Inputs answered by both backends.", ("task", "result"), registry=r
        )
        self.abs_diff = Histogram(
            "q8bert_shadow_abs_diff",
            "Largest difference of a score.",
            ("task",),
            buckets=_DIFFERENCES,
            registry=r,
        )
        self.span_f1 = Histogram(
            "q8bert_shadow_span_f1", "F1 of the two spans' words.", ("task",), buckets=_SHARES, registry=r
        )
        self.dropped = Counter(
            "q8bert_shadow_dropped", "Sampled requests that were not compared.", ("reason",), registry=r
        )
        for reason in DROPS:
            self.dropped.labels(reason)

    def create_children(self, tasks: Iterable[str]) -> None:
        """Let the series of these tasks exist."""
        for task in tasks:
            for result in RESULTS:
                self.comparisons.labels(task, result)
            self.abs_diff.labels(task)
            if task == "qa":
                self.span_f1.labels(task)

    def dropped_counts(self) -> dict[str, int]:
        """How many sampled requests were dropped since start, by reason."""
        samples = [sample for family in self.dropped.collect() for sample in family.samples]
        return {sample.labels["reason"]: int(sample.value) for sample in samples if sample.name.endswith("_total")}

    def observe(self, task: str, found: Comparison) -> None:
        """Count one comparison."""
        self.comparisons.labels(task, RESULTS[0] if found.agree else RESULTS[1]).inc()
        self.abs_diff.labels(task).observe(found.abs_diff)
        if found.span_f1 is not None:
            self.span_f1.labels(task).observe(found.span_f1)
