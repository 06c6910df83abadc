"""The Prometheus metrics of ``backend=auto``."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter

from service.queueing.batcher import LoadedModel

AUTO = "auto"
"""The backend by which a request leaves the choice to the service; also the value of the label ``backend``."""
KEPT, CONFIRMED, CHANGED = ESCALATION_RESULTS = ("kept", "confirmed", "changed")
"""int8 was sure; the second variant was asked and agreed; it was asked and gave another answer."""


class CascadeMetrics:
    """How often int8 was not sure, and how often the variant that was asked again then changed the answer."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._inputs = Counter(
            "q8bert_escalations",
            "Inputs of backend=auto, by what came of them.",
            ("task", "model", "second", "result"),
            registry=registry,
        )
        self._seconds: dict[LoadedModel, set[str]] = {}

    def begin(self, model: LoadedModel, second: str | None) -> None:
        """Count a model from now on; create its series with the variant that it asks, if that is served already."""
        self._seconds[model] = set()
        if second is not None:
            self._create(model, second)

    def end(self, model: LoadedModel) -> None:
        """Remove a model's series, if it has any."""
        for second in self._seconds.pop(model, set()):
            for result in ESCALATION_RESULTS:
                self._inputs.remove(model.task, model.name, second, result)

    def count(self, model: LoadedModel, second: str, result: str, inputs: int = 1) -> None:
        """Count inputs of a model, unless its series have ended: a late request must not revive them."""
        if model in self._seconds:
            self._create(model, second)
            self._inputs.labels(model.task, model.name, second, result).inc(inputs)

    def _create(self, model: LoadedModel, second: str) -> None:
        """Create the series of a model with a variant at zero, unless they exist."""
        if second not in self._seconds[model]:
            self._seconds[model].add(second)
            for result in ESCALATION_RESULTS:
                self._inputs.labels(model.task, model.name, second, result)
