"""All Prometheus metrics of the service, created together on a registry of their own.

All label values are known at start, so all series exist from the first scrape, at zero. Gauges read their values at
scrape time, instead of being counted up and down. Only metrics of one engine (memory, self-test, up, info), of how far
a model's two engines agree and of ``backend=auto`` have the label ``model``: requests and times of several models of a
task are summed. The series of a model disappear with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.process_collector import ProcessCollector

from service.queueing.batcher import Batch, Lane, QueueLimits
from service.telemetry.cascade_metrics import AUTO, CascadeMetrics
from service.telemetry.shadow_metrics import ShadowMetrics

NO_BACKEND = "none"
"""Backend label of requests that were refused before a backend was chosen."""
COMPARE = "compare"
"""Task label of requests that both backends answer; each backend counts its own share."""
STAGES = ("tokenize", "queue", "infer", "postprocess")
CODES = (200, 400, 401, 404, 405, 408, 413, 415, 422, 429, 499, 500, 503, 504)
REJECTIONS = {
    "queue_full": "queue_full",
    "deadline_exceeded": "deadline",
    "client_closed": "client_closed",
    "body_too_large": "too_large",
    "too_many_tokens": "too_large",
    "unauthorized": "unauthorized",
    "body_too_slow": "too_slow",
    "draining": "draining",
    "not_ready": "not_ready",
    "engine_dead": "engine_dead",
}
"""error_type -> reason, for requests that were refused or given up."""

_LANE = ("task", "backend")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_SIZES = tuple(float(2**n) for n in range(11))
_TOKENS = tuple(float(2**n) for n in range(2, 17))


class RequestMetrics:
    """Metrics of requests: answers, times, refusals, waiting."""

    def __init__(self, registry: CollectorRegistry) -> None:
        r = registry
        self.total = Counter("q8bert_requests", "Requests by answer status.", (*_LANE, "code"), registry=r)
        self.seconds = Histogram(
            "q8bert_request_duration_seconds", "Answered requests.", _LANE, buckets=_SECONDS, registry=r
        )
        self.stage_seconds = Histogram(
            "q8bert_stage_duration_seconds", "Their stages.", (*_LANE, "stage"), buckets=_SECONDS, registry=r
        )
        self.rejected = Counter("q8bert_rejected", "Refused or given up.", ("task", "reason"), registry=r)
        self.in_flight = Gauge("q8bert_requests_in_flight", "Accepted, not yet answered.", ("backend",), registry=r)
        self.queue_requests = Gauge("q8bert_queue_requests", "Requests that wait.", ("backend",), registry=r)
        self.queue_tokens = Gauge("q8bert_queue_tokens", "Tokens that wait.", ("backend",), registry=r)
        self.ready = Gauge("q8bert_ready", "1 when requests are taken.", registry=r)
        self.queue_limit_requests = Gauge("q8bert_queue_limit_requests", "Requests that may wait.", registry=r)
        self.queue_limit_tokens = Gauge("q8bert_queue_limit_tokens", "Tokens that may wait.", registry=r)
        self.input_tokens = Histogram(
            "q8bert_input_tokens", "Tokens of one request.", ("backend",), buckets=_TOKENS, registry=r
        )
        self.qa_windows = Histogram(
            "q8bert_qa_windows", "Windows of one QA request.", ("backend",), buckets=_SIZES, registry=r
        )

    def watch(
        self,
        backends: Sequence[str],
        in_flight: Callable[[str], int],
        queue_requests: Callable[[str], int],
        queue_tokens: Callable[[str], int],
    ) -> None:
        """Let the gauges call these functions of the backend at every scrape."""
        for backend in backends:
            for gauge, read in (
                (self.in_flight, in_flight),
                (self.queue_requests, queue_requests),
                (self.queue_tokens, queue_tokens),
            ):
                gauge.labels(backend).set_function(lambda read=read, backend=backend: float(read(backend)))

    def watch_limits(self, limits: QueueLimits, ready: Callable[[], bool]) -> None:
        """Set the limits of the queue, and read at every scrape whether the service is ready."""
        self.queue_limit_requests.set(limits.max_queue_requests)
        self.queue_limit_tokens.set(limits.max_queue_tokens)
        self.ready.set_function(lambda: float(ready()))


class EngineMetrics:
    """Metrics of the engines: batches, tokens, times, memory."""

    def __init__(self, registry: CollectorRegistry) -> None:
        r, backend = registry, ("backend",)
        self.batches = Counter("q8bert_batches", "Batches computed.", _LANE, registry=r)
        self.inferences = Counter("q8bert_inferences", "Sequences computed.", _LANE, registry=r)
        self.batch_size = Histogram("q8bert_batch_size", "Sequences of a batch.", backend, buckets=_SIZES, registry=r)
        self.batch_tokens = Histogram("q8bert_batch_tokens", "Tokens of a batch.", backend, buckets=_TOKENS, registry=r)
        self.tokens = Counter("q8bert_tokens", "Tokens computed.", ("backend", "kind"), registry=r)
        self.busy_seconds = Counter("q8bert_engine_busy_seconds", "Time spent computing.", backend, registry=r)
        self.cpu_seconds = Counter(
            "q8bert_cpu_seconds", "CPU time of the process while this backend computed.", backend, registry=r
        )
        one = (*_LANE, "model")
        self.memory_bytes = Gauge("q8bert_model_memory_bytes", "Resident memory.", (*one, "kind"), registry=r)
        self.up = Gauge("q8bert_engine_up", "1 when self-tested and served.", one, registry=r)
        self.last_batch = Gauge("q8bert_engine_last_batch_timestamp_seconds", "End of it.", _LANE, registry=r)
        self.selftest = Gauge(
            "q8bert_selftest_max_abs_diff", "Largest logit difference to the golden outputs.", one, registry=r
        )
        self.model_info = Gauge(
            "q8bert_model_info",
            "Always 1; the labels say what is loaded.",
            (*one, "revision", "dtype", "bits", "kernel", "isa"),
            registry=r,
        )

    def observe_batch(self, batch: Batch, busy_seconds: float, cpu_seconds: float, now: float) -> None:
        """Count one computed batch."""
        task, backend = batch.lane.labels
        self.batches.labels(task, backend).inc()
        self.inferences.labels(task, backend).inc(len(batch.entries))
        self.batch_size.labels(backend).observe(len(batch.entries))
        self.batch_tokens.labels(backend).observe(batch.tokens)
        self.tokens.labels(backend, "real").inc(batch.tokens)
        self.busy_seconds.labels(backend).inc(busy_seconds)
        self.cpu_seconds.labels(backend).inc(cpu_seconds)
        self.last_batch.labels(task, backend).set(now)


@dataclass(frozen=True)
class ServiceMetrics:
    """All families; names and labels are those of the table in service/README.md."""

    registry: CollectorRegistry
    requests: RequestMetrics
    engines: EngineMetrics
    shadow: ShadowMetrics
    cascade: CascadeMetrics


def create_metrics(lanes: Sequence[Lane], *, auto: bool = False) -> ServiceMetrics:
    """Create all metrics with all series for these engines, and the process's own metrics.

    Args:
        lanes: the engines.
        auto: whether requests may use ``backend=auto``.
    """
    # else each counter and histogram has a second series with its creation time; this switch is process-wide
    disable_created_metrics()
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    metrics = ServiceMetrics(
        registry,
        RequestMetrics(registry),
        EngineMetrics(registry),
        ShadowMetrics(registry),
        CascadeMetrics(registry),
    )
    create_children(metrics, lanes, auto=auto)
    return metrics


def create_children(metrics: ServiceMetrics, lanes: Sequence[Lane], *, auto: bool = False) -> None:
    """Create the series of these engines at zero; existing ones keep their values."""
    tasks = dict.fromkeys(lane.task for lane in lanes)
    _create_request_children(metrics.requests, lanes)
    if auto:
        _create_auto_children(metrics.requests, tasks)
    _create_engine_children(metrics.engines, lanes)


def _create_request_children(requests: RequestMetrics, lanes: Sequence[Lane]) -> None:
    backends = list(dict.fromkeys(lane.backend for lane in lanes))
    for labels in [*(lane.labels for lane in lanes), *((COMPARE, backend) for backend in backends)]:
        requests.seconds.labels(*labels)
        for stage in STAGES:
            requests.stage_seconds.labels(*labels, stage)
    for task in dict.fromkeys([*(lane.task for lane in lanes), COMPARE]):
        for reason in REJECTIONS.values():
            requests.rejected.labels(task, reason)
        for backend in (*backends, NO_BACKEND):
            for code in CODES:
                requests.total.labels(task, backend, code)
    for backend in backends:
        requests.input_tokens.labels(backend)
        requests.qa_windows.labels(backend)


def _create_auto_children(requests: RequestMetrics, tasks: Iterable[str]) -> None:
    for task in tasks:
        requests.seconds.labels(task, AUTO)
        for stage in STAGES:
            requests.stage_seconds.labels(task, AUTO, stage)
        for code in CODES:
            requests.total.labels(task, AUTO, code)


def _create_engine_children(engines: EngineMetrics, lanes: Sequence[Lane]) -> None:
    for lane in lanes:
        engines.batches.labels(*lane.labels)
        engines.inferences.labels(*lane.labels)
    for backend in dict.fromkeys(lane.backend for lane in lanes):
        for family in (engines.batch_size, engines.batch_tokens, engines.busy_seconds, engines.cpu_seconds):
            family.labels(backend)
        for kind in ("real", "padding"):
            engines.tokens.labels(backend, kind)
