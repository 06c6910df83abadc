"""The engine thread: loads the engines, then computes one batch after another.

There is one per process. Every engine uses all of the process's CPUs for a batch, so two engines at once would only
take turns at a higher price; and OpenMP keeps one team of worker threads per calling thread, so loading, warm-up and
inference all happen here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from q8core.arrays import Logits
from q8core.engines.packing import TokenBatch
from q8core.errors import InputError, Q8Error
from q8core.model.head import Reads
from service.errors import EngineDead, InferenceFailed, ServiceError, UnknownModel
from service.lifecycle import Lifecycle, State
from service.queueing.batcher import Batch, BatchQueue, Lane
from service.queueing.throughput import Throughput

log = logging.getLogger(__name__)

_DEAD = "the engine has stopped; restart the server"


class Infers(Protocol):
    """The part of an engine that the thread uses."""

    @property
    def reads(self) -> Reads:
        """The tokens that its head reads."""
        ...

    def infer(self, batch: TokenBatch) -> Logits:
        """Compute the logits of a packed batch."""
        ...


class SpareWork(Protocol):
    """Work for the thread while no request waits; see `service.second_opinion.shadow`."""

    def pause(self) -> float | None:
        """Return how long to wait for requests before calling `take`; None: for ever."""
        ...

    def take(self) -> Batch | None:
        """Return one small batch to compute now, or None."""
        ...


class CountsBatches(Protocol):
    """Counts computed batches; see `service.telemetry.metrics`."""

    def observe_batch(self, batch: Batch, busy_seconds: float, cpu_seconds: float, now: float) -> None:
        """Account for one computed batch."""
        ...


class _Computed(NamedTuple):
    """The number of computed tokens, and the time that they took."""

    tokens: int
    seconds: float


class StartupStopped(Exception):
    """Raised inside start-up to leave it early when the process should stop."""


class EngineThread(threading.Thread):
    """Runs ``start_up`` and then serves the queue until it is closed and empty.

    Args:
        start_up: loads, self-tests and warms up; returns the engine of each lane. It is given a function to call
            between its steps, which raises StartupStopped when the process should stop.
        queue: the source of batches.
        throughput: records how fast each lane is.
        lifecycle: is set to ready or failed.
        metrics: counts each computed batch.
        spare: work for when the queue is empty.
    """

    def __init__(
        self,
        start_up: Callable[[Callable[[], None]], Mapping[Lane, Infers]],
        queue: BatchQueue,
        throughput: Throughput,
        lifecycle: Lifecycle,
        metrics: CountsBatches,
        spare: SpareWork,
    ) -> None:
        super().__init__(name="q8bert-engine", daemon=True)
        self._start_up = start_up
        self._queue = queue
        self._throughput = throughput
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._spare = spare
        self._stop_requested = threading.Event()
        self._busy_since: float | None = None
        self._engines: dict[Lane, Infers] = {}

    @property
    def busy_seconds(self) -> float:
        """How long the current batch has been computing, in seconds; 0 when idle."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def request_stop(self) -> None:
        """Leave start-up at its next step; closing the queue ends the serving."""
        self._stop_requested.set()

    def add_engines(self, engines: Mapping[Lane, Infers]) -> None:
        """Compute batches of further lanes; callable from any thread, before the queue accepts their tickets."""
        self._engines.update(engines)

    def remove_engines(self, lanes: Sequence[Lane]) -> None:
        """Release engines; callable from any thread, once no request waits for their answers."""
        for lane in lanes:
            self._engines.pop(lane, None)

    def run(self) -> None:
        """Load and serve; however this ends, no request is left waiting."""
        try:
            self.add_engines(self._start_up(self._check_stop))
            if self._lifecycle.advance(State.READY):
                log.info("ready")
            pause = self._spare.pause()
            while (batch := self._next(pause)) is not None:
                self._compute_on_engine(batch)
                pause = 0.0 if batch.spare else self._spare.pause()
        except StartupStopped:
            log.info("stopped during start-up")
        except Q8Error as error:
            self._lifecycle.fail(error)
        except BaseException as error:  # without this thread the service cannot go on
            log.exception("the engine thread died")
            self._lifecycle.fail(error)
        finally:
            self._queue.close(EngineDead(_DEAD), drop_waiting=True)

    def _check_stop(self) -> None:
        if self._stop_requested.is_set():
            raise StartupStopped

    def _next(self, pause: float | None) -> Batch | None:
        """Return the next batch of requests, or spare work if none came within `pause`; None at the end."""
        while True:
            batch = self._queue.take(pause)
            if batch is not None or self._queue.finished:
                return batch
            batch = self._spare.take()
            if batch is not None:
                return batch
            pause = self._spare.pause()

    def _compute_on_engine(self, batch: Batch) -> None:
        engine = self._engines.get(batch.lane)
        if engine is None:  # a spare batch whose model was unloaded meanwhile: no request waits for it
            self._fail(batch, UnknownModel(f"the model {batch.lane.model!r} was unloaded"))
        else:
            self._compute(engine, batch)

    def _compute(self, engine: Infers, batch: Batch) -> None:
        """Compute one batch; a failing engine fails only the requests in it."""
        self._busy_since = time.monotonic()
        try:
            done = self._answer(engine, batch)
        except Exception:
            lane = batch.lane
            log.exception("%s on %s failed for a batch of %d sequences", lane.model, lane.backend, len(batch.entries))
            self._fail(batch, InferenceFailed("the engine failed on this batch; the server's log has the details"))
            return
        except BaseException:  # ends the thread; this batch, which is in no queue any more, must fail too
            self._fail(batch, EngineDead(_DEAD))
            raise
        finally:
            self._busy_since = None
        if done.tokens and not batch.spare:  # spare batches are small and would make the engine look slow
            self._throughput.observe(batch.lane, done.tokens, done.seconds)

    def _answer(self, engine: Infers, batch: Batch) -> _Computed:
        """Compute sequences together; if the engine refuses one of them, compute the others without it."""
        begin, cpu_begin = time.monotonic(), time.process_time()
        try:
            packed = TokenBatch.pack([(entry.item.input_ids, entry.item.token_type_ids) for entry in batch.entries])
            logits = engine.infer(packed)
        except InputError as error:
            refusal = str(error)
        else:
            parts = packed.split(logits, engine.reads)
            seconds = time.monotonic() - begin
            for entry, own in zip(batch.entries, parts, strict=True):
                entry.ticket.resolve(entry.place, own)
            self._metrics.observe_batch(batch, seconds, time.process_time() - cpu_begin, time.time())
            return _Computed(batch.tokens, seconds)
        return self._answer_others(engine, batch, refusal)

    def _answer_others(self, engine: Infers, batch: Batch, refusal: str) -> _Computed:
        """Fail the only sequence of a batch, or look for the refused ones in both halves of it.

        An engine refuses before it computes. So finding one refused sequence among n takes about log n checks, and no
        other sequence is computed twice.
        """
        if len(batch.entries) == 1:
            log.debug("%s on %s refused a sequence: %s", batch.lane.model, batch.lane.backend, refusal)
            self._fail(batch, InputError(refusal))
            return _Computed(0, 0.0)
        middle, done = len(batch.entries) // 2, _Computed(0, 0.0)
        for half in (batch.entries[:middle], batch.entries[middle:]):
            # a request with a refused sequence has failed: its other sequences are not needed
            wanted = tuple(entry for entry in half if not entry.ticket.future.done())
            if wanted:
                more = self._answer(engine, replace(batch, entries=wanted))
                done = _Computed(done.tokens + more.tokens, done.seconds + more.seconds)
        return done

    def _fail(self, batch: Batch, error: Q8Error | ServiceError) -> None:
        for ticket in {entry.ticket for entry in batch.entries}:
            self._queue.abandon(ticket, error)
