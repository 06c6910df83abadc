"""The Prometheus metrics of ``backend=auto``."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter

AUTO = "auto"
"""The backend that a request names to leave the choice to the service; also the label under which it counts."""
KEPT, CONFIRMED, CHANGED = ESCALATION_RESULTS = ("kept", "confirmed", "changed")
"""int8 was sure enough; fp32 was asked and agreed; fp32 was asked and answered something else."""


class CascadeMetrics:
    """How often int8 was not sure, and whether asking again was worth it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.inputs = Counter(
            "q8bert_escalations", "Inputs of backend=auto, by what came of them.", ("task", "result"), registry=registry
        )

    def create_children(self, tasks: Iterable[str]) -> None:
        """Let the series of these tasks exist."""
        for task in tasks:
            for result in ESCALATION_RESULTS:
                self.inputs.labels(task, result)
