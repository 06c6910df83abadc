"""The Prometheus metrics of ``backend=auto``."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter

AUTO = "auto"
"""The backend by which a request leaves the choice to the service; also the value of the label ``backend``."""
KEPT, CONFIRMED, CHANGED = ESCALATION_RESULTS = ("kept", "confirmed", "changed")
"""int8 was sure; fp32 was asked and agreed; fp32 was asked and gave another answer."""


class CascadeMetrics:
    """How often int8 was not sure, and how often fp32 then changed the answer."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.inputs = Counter(
            "q8bert_escalations", "Inputs of backend=auto, by what came of them.", ("task", "result"), registry=registry
        )

    def create_children(self, tasks: Iterable[str]) -> None:
        """Create the series of these tasks."""
        for task in tasks:
            for result in ESCALATION_RESULTS:
                self.inputs.labels(task, result)
