"""The parts of one running service, wired together; `service.http.app` puts HTTP in front of them."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Mapping
from functools import partial

from prometheus_client.registry import Collector

from q8core.engines.memory.heap import release_freed_memory
from q8core.engines.protocol import Engine
from service.answering.pipeline import Pipeline
from service.errors import Draining
from service.lifecycle import Lifecycle, State
from service.models.registry import Model, ModelRegistry
from service.queueing.batcher import BatchQueue, Lane, QueueLimits
from service.queueing.engine_thread import EngineThread, Infers
from service.queueing.throughput import Throughput
from service.second_opinion.agreement import Agreement
from service.second_opinion.cascade import Cascade
from service.second_opinion.shadow import Shadow
from service.settings import Settings
from service.telemetry.cascade_metrics import AUTO
from service.telemetry.exchange import MergedMetrics, Place
from service.telemetry.metrics import ServiceMetrics, create_children, create_metrics

log = logging.getLogger(__name__)


class Service:
    """Queue, engine thread, pipeline and metrics around a registry of models.

    Args:
        settings: limits and defaults.
        registry: opened checkpoints; their engines are loaded on the engine thread after `start`.
        place: this process's number among several workers; None: it is the only one.
        warmed: called on the engine thread when everything is loaded, before the service is ready.
    """

    def __init__(
        self,
        settings: Settings,
        registry: ModelRegistry,
        *,
        place: Place | None = None,
        warmed: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings
        self.registry = registry
        registry.on_release = self._detach
        self.place = place
        self.lifecycle = Lifecycle()
        self.metrics: ServiceMetrics = create_metrics(registry.lanes, auto=settings.cascade is not None)
        self._warmed = warmed
        own = self.metrics.registry
        self.exposed: Collector = own if place is None else MergedMetrics(own, place)
        """What /metrics shows: with several worker processes, the metrics of all of them."""
        self.throughput = Throughput(registry.lanes)
        limits = QueueLimits(settings.max_batch_tokens, settings.max_queue_tokens, settings.max_queue_requests)
        self.queue = BatchQueue(registry.lanes, limits, self.throughput.drain_seconds)
        self.shadow = Shadow(
            settings.shadow_rate,
            Agreement(),
            self.metrics.shadow,
            idle=lambda: self.pipeline.in_flight.count() == 0,
            with_texts=settings.shadow_texts,
        )
        self.cascade = Cascade.read(settings.cascade, registry) if settings.cascade else Cascade(registry)
        for model in registry.models.values():
            self._begin(model)
        self.pipeline = Pipeline(
            settings, registry, self.queue, self.lifecycle, self.metrics, self.shadow, self.cascade
        )
        self.worker = EngineThread(
            self._start_up, self.queue, self.throughput, self.lifecycle, self.metrics.engines, self.shadow
        )
        self.metrics.requests.watch(
            (*registry.backends, *((AUTO,) if settings.cascade else ())),
            in_flight=self.pipeline.in_flight.count,
            queue_requests=self.queue.waiting_requests,
            queue_tokens=self.queue.waiting_tokens,
        )
        self.metrics.requests.watch_limits(limits, lambda: self.lifecycle.state is State.READY)

    def start(self) -> None:
        """Begin to load, if that has not begun; `lifecycle` says when loading is done."""
        if self.worker.ident is None:
            self.worker.start()

    def drain(self) -> None:
        """Refuse new requests from now on; accepted ones are still answered."""
        self.shadow.close()
        if self.lifecycle.advance(State.DRAINING):
            log.info("draining: %d requests to answer", self.pipeline.in_flight.count())

    def stop(self, timeout: float | None = None) -> bool:
        """Drain, and let the engine thread finish its queue and stop; False if it has not stopped in time."""
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
        """Return why the engine thread cannot work any more, or None."""
        state = self.lifecycle.state
        if state is State.FAILED or (state is State.READY and not self.worker.is_alive()):
            return "the engine thread has died; restart the server"
        stuck_after = 2 * self.settings.request_timeout_s
        if self.worker.busy_seconds > stuck_after:
            return f"one batch has been computing for more than {stuck_after:g} s; restart the server"
        return None

    def attach(self, model: Model, engines: Mapping[Lane, Infers]) -> None:
        """Take requests for a model whose engines are loaded; put it in the registry in the same event-loop step."""
        lanes = tuple(engines)
        create_children(self.metrics, lanes, auto=self.settings.cascade is not None)
        self.throughput.add(lanes)
        self.worker.add_engines(engines)
        self.queue.add_lanes(lanes)
        self._begin(model)

    def _begin(self, model: Model) -> None:
        """Begin to count how well a model agrees with others, and what becomes of its answers."""
        self.shadow.begin(model.loaded, model.revision)
        if self.cascade.of(model) is not None:
            second = self.cascade.served_second(model)
            self.metrics.cascade.begin(model.loaded, second and second.name)

    def _start_up(self, check_stop: Callable[[], None]) -> Mapping[Lane, Infers]:
        self.lifecycle.advance(State.WARMING)
        engines = self.registry.load(check_stop)
        for model in self.registry.models.values():
            self.show(model)
        self._warmed()
        return engines

    def _detach(self, model: Model) -> None:
        """Release a model that no request holds any more."""
        lanes = tuple(model.lane(backend) for backend in model.engines)
        self.queue.remove_lanes(lanes)
        self.worker.remove_engines(lanes)
        self.throughput.remove(lanes)
        engines = [loaded.engine for loaded in model.engines.values()]
        model.engines.clear()
        # unmapping hundreds of megabytes would block the event loop for too long
        threading.Thread(target=_free, args=(engines,), name="q8bert-free").start()
        log.info("%s (%s) is unloaded", model.name, model.revision)

    def show(self, model: Model) -> None:
        """Show a model's loaded engines in the metrics."""
        metrics = self.metrics.engines
        alive = self.worker.is_alive
        for backend, loaded in model.engines.items():
            labels, engine = (model.task, backend, model.name), loaded.engine
            metrics.memory_bytes.labels(*labels, "weights").set(engine.memory().weights)
            metrics.memory_bytes.labels(*labels, "scales").set(engine.memory().scales)
            # grows with the largest batch so far
            metrics.memory_bytes.labels(*labels, "workspace").set_function(partial(_workspace, weakref.ref(engine)))
            metrics.selftest.labels(*labels).set(loaded.selftest_max_abs_diff)
            metrics.model_info.labels(*labels, *_build(model, backend, engine)).set(1)
            metrics.up.labels(*labels).set_function(lambda: float(alive()))

    def hide(self, model: Model) -> None:
        """Remove a model's engines from the metrics, and forget how well they agree."""
        self.shadow.end(model.loaded)
        self.metrics.cascade.end(model.loaded)
        metrics = self.metrics.engines
        for backend, loaded in model.engines.items():
            labels = (model.task, backend, model.name)
            for kind in loaded.memory_bytes:
                metrics.memory_bytes.remove(*labels, kind)
            metrics.selftest.remove(*labels)
            metrics.model_info.remove(*labels, *_build(model, backend, loaded.engine))
            metrics.up.remove(*labels)


def _free(engines: list[Engine]) -> None:
    """Drop the last references to engines and return their memory to the system."""
    engines.clear()
    release_freed_memory()


def _workspace(engine: weakref.ref[Engine]) -> float:
    """Return an engine's workspace in bytes.

    A gauge with a function becomes part of a reference cycle; the weak reference keeps the engine out of it.
    """
    found = engine()
    return float(found.memory().workspace) if found is not None else 0.0


def _build(model: Model, backend: str, engine: Engine) -> tuple[str, ...]:
    """Return revision, dtype, bits, kernel and instruction set, the labels of model_info."""
    facts = engine.describe()
    bits, isa = (str(facts.get(name, "unknown")) for name in ("bits", "isa"))
    return model.revision, backend, bits, engine.kernel, isa
