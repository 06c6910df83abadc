"""The series that the service exposes, by name with their labels: what dashboards and alerts may ask for."""

from __future__ import annotations

import re

from prometheus_client import Counter, Gauge, Histogram

from service.hosts.workers.supervisor import SupervisorMetrics
from service.queueing.batcher import Lane
from service.telemetry.metrics import create_metrics

# Added to every series by Prometheus itself.
SCRAPE_LABELS = {"job", "instance"}
METRIC = re.compile(r"\b(?:q8bert|process)_[a-z0-9_]+")


def expose(family: Counter | Gauge | Histogram) -> dict[str, set[str]]:
    """Names of a family's series as scraped, each with its labels."""
    name, labels = family._name, set(family._labelnames)
    if isinstance(family, Counter):
        return {f"{name}_total": labels}
    if isinstance(family, Histogram):
        return {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
    return {name: labels}


def exposed_series() -> dict[str, set[str]]:
    """Every series of the service with its labels."""
    lanes = [Lane(task, backend) for task in ("classify", "qa") for backend in ("fp32", "int8")]
    registries = (create_metrics(lanes).registry, SupervisorMetrics(2, lambda: 2).registry)
    series: dict[str, set[str]] = {}
    for collector in [collector for registry in registries for collector in registry._collector_to_names]:
        if isinstance(collector, Counter | Gauge | Histogram):
            series |= expose(collector)
        else:
            series |= {sample.name: set(sample.labels) for family in collector.collect() for sample in family.samples}
    return series
