"""The parts of one running service, wired together; `service.app` puts HTTP in front of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from service.admission import Throughput
from service.agreement import Agreement
from service.batcher import BatchQueue, Lane, QueueLimits
from service.cascade import Cascade
from service.cascade_metrics import AUTO
from service.errors import Draining
from service.lifecycle import Lifecycle, State
from service.metrics import ServiceMetrics, create_metrics
from service.pipeline import Pipeline
from service.registry import ModelRegistry
from service.settings import Settings
from service.shadow import Shadow
from service.worker import EngineThread, Infers

log = logging.getLogger(__name__)


class Service:
    """Queue, engine thread, pipeline and metrics around a registry of models.

    Args:
        settings: limits and defaults.
        registry: opened checkpoints; their engines are loaded on the engine thread after `start`.
    """

    def __init__(self, settings: Settings, registry: ModelRegistry) -> None:
        self.settings = settings
        self.registry = registry
        self.lifecycle = Lifecycle()
        self.metrics: ServiceMetrics = create_metrics(registry.lanes, auto=settings.cascade is not None)
        self.throughput = Throughput(registry.lanes)
        limits = QueueLimits(settings.max_batch_tokens, settings.max_queue_tokens, settings.max_queue_requests)
        self.queue = BatchQueue(registry.lanes, limits, self.throughput.drain_seconds)
        self.shadow = Shadow(
            settings.shadow_rate,
            Agreement(registry.models),
            self.metrics.shadow,
            idle=lambda: self.pipeline.in_flight.count() == 0,
            with_texts=settings.shadow_texts,
        )
        models = tuple(registry.models.values())
        self.cascade = Cascade.read(settings.cascade, models) if settings.cascade else Cascade()
        self.pipeline = Pipeline(
            settings, registry, self.queue, self.lifecycle, self.metrics, self.shadow, self.cascade
        )
        self.worker = EngineThread(
            self._start_up, self.queue, self.throughput, self.lifecycle, self.metrics, self.shadow
        )
        self.metrics.requests.watch(
            (*registry.backends, *((AUTO,) if settings.cascade else ())),
            in_flight=self.pipeline.in_flight.count,
            queue_requests=self.queue.waiting_requests,
            queue_tokens=self.queue.waiting_tokens,
        )
        self.metrics.requests.watch_limits(limits, lambda: self.lifecycle.state is State.READY)

    def start(self) -> None:
        """Begin to load; `lifecycle` tells when it is over."""
        self.worker.start()

    def drain(self) -> None:
        """Refuse new requests from now on; accepted ones are still answered."""
        self.shadow.close()
        if self.lifecycle.advance(State.DRAINING):
            log.info("draining: %d requests to answer", self.pipeline.in_flight.count())

    def stop(self, timeout: float | None = None) -> bool:
        """Drain, let the engine thread finish its queue and end; False where it has not ended in time."""
        self.drain()
        self.worker.request_stop()
        self.queue.close(Draining("the server is shutting down"))
        if self.worker.ident is not None:
            self.worker.join(timeout)
        self.shadow.shut_down()
        self.pipeline.close()
        self.lifecycle.advance(State.STOPPED)
        return not self.worker.is_alive()

    def engine_problem(self) -> str | None:
        """Why the engine thread cannot work any more, or None."""
        state = self.lifecycle.state
        if state is State.FAILED or (state is State.READY and not self.worker.is_alive()):
            return "the engine thread has died; restart the server"
        stuck_after = 2 * self.settings.request_timeout_s
        if self.worker.busy_seconds > stuck_after:
            return f"one batch has been computing for more than {stuck_after:g} s; restart the server"
        return None

    def _start_up(self, check_stop: Callable[[], None]) -> Mapping[Lane, Infers]:
        self.lifecycle.advance(State.WARMING)
        engines = self.registry.load(check_stop)
        for lane in engines:
            self._publish(lane)
        return engines

    def _publish(self, lane: Lane) -> None:
        """Show a loaded engine in the metrics."""
        model = self.registry.models[lane.task]
        loaded = model.engines[lane.backend]
        engine, metrics = loaded.engine, self.metrics.engines
        metrics.memory_bytes.labels(*lane, "weights").set(engine.memory().weights)
        metrics.memory_bytes.labels(*lane, "scales").set(engine.memory().scales)
        # grows with the largest batch so far
        metrics.memory_bytes.labels(*lane, "workspace").set_function(lambda: float(engine.memory().workspace))
        metrics.selftest.labels(*lane).set(loaded.selftest_max_abs_diff)
        isa = str(engine.describe().get("isa", "unknown"))
        about = (*lane, model.name, model.revision, lane.backend, engine.kernel, isa)
        metrics.model_info.labels(*about).set(1)
        alive = self.worker.is_alive
        metrics.up.labels(*lane).set_function(lambda: float(alive()))
