"""The shadow comparison: a sample of the answered requests runs again on the other backend while the server is idle.

A sampled request waits, with its token ids and the first backend's logits, in a bounded queue. The engine thread takes
from this queue only after a pause without requests, one sequence at a time, so a new request waits for at most one
sequence. A sample is dropped, and counted, if the queue is full or no idle moment comes in time. Comparing the answers
runs on a thread of its own. No request, probe or drain ever waits for any of this.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from random import Random

from q8core.arrays import Logits
from service.queueing.batcher import Batch, Entry, Lane, LoadedModel, Ticket, WorkItem
from service.second_opinion.agreement import Agreement, Side, compare_request
from service.second_opinion.compare import BACKENDS
from service.tasks.work import Work
from service.telemetry.shadow_metrics import BUSY, DRAINING, FAILED, QUEUE_FULL, UNLOADED, ShadowMetrics

log = logging.getLogger(__name__)

# After this long without requests, the engine is idle.
_PAUSE_S = 0.01
# How often the engine thread checks for waiting samples.
_LOOK_S = 0.1


@dataclass(frozen=True)
class ShadowLimits:
    """Limits of the queue of samples."""

    requests: int = 1024
    tokens: int = 65536
    characters: int = 8_000_000
    """Characters of the texts, of which a model may have read only the beginning."""
    patience_s: float = 60.0


@dataclass(frozen=True)
class Sample:
    """A request that one backend has answered."""

    request_id: str
    work: Work[object]
    items: list[WorkItem]
    lane: Lane
    """The engine that answered."""
    logits: list[Logits]


class _Dropped(Exception):
    """The outcome of a sample that is dropped while it waits."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(eq=False)
class _Job:
    """A sample that waits for the other engine."""

    ticket: Ticket
    characters: int
    expires: float
    begun: int = 0
    """How many of its sequences were taken."""

    @property
    def tokens(self) -> int:
        return self.ticket.tokens

    def drop(self, reason: str) -> None:
        """Drop the sample, unless its ticket already has an outcome."""
        self.ticket.fail(_Dropped(reason))


@dataclass
class _Waiting:
    """The jobs that are not computed yet, in order of arrival."""

    jobs: deque[_Job] = field(default_factory=lambda: deque["_Job"]())
    tokens: int = 0
    characters: int = 0

    def push(self, job: _Job) -> None:
        self.jobs.append(job)
        self.tokens += job.tokens
        self.characters += job.characters

    def has_room(self, job: _Job, limits: ShadowLimits) -> bool:
        return (
            len(self.jobs) < limits.requests
            and self.tokens + job.tokens <= limits.tokens
            and self.characters + job.characters <= limits.characters
        )

    def pop(self) -> _Job:
        job = self.jobs.popleft()
        self.tokens -= job.tokens
        self.characters -= job.characters
        return job

    def remove(self, model: LoadedModel) -> list[_Job]:
        """Remove and return a model's jobs."""
        removed: list[_Job] = []
        for _ in range(len(self.jobs)):
            job = self.pop()
            if job.ticket.lane.loaded == model:
                removed.append(job)
            else:
                self.push(job)
        return removed


class Shadow:
    """Samples answered requests, computes them on the other backend when idle, and compares.

    Args:
        rate: share of the answered requests to sample, 0 to 1; 0 switches everything off.
        agreement: receives every case.
        metrics: counts them.
        idle: whether no request is in flight.
        with_texts: keep the texts of the worst cases.
        limits: limits of the queue.
        random: chooses the sample.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self,
        rate: float,
        agreement: Agreement,
        metrics: ShadowMetrics,
        idle: Callable[[], bool],
        *,
        with_texts: bool = False,
        limits: ShadowLimits | None = None,
        random: Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rate = rate
        self.with_texts = with_texts
        self.agreement = agreement
        self.limits = limits or ShadowLimits()
        self._metrics = metrics
        self._idle = idle
        self._random = random or Random()
        self._clock = clock
        self._waiting = _Waiting()
        self._closed = False
        self._lock = threading.Lock()
        # held while a model's statistics start, end or grow: a late sample must not revive those of a removed model
        self._books = threading.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="q8bert-shadow")

    def begin(self, model: LoadedModel, revision: str) -> None:
        """Compare a model's requests from now on; its statistics start empty."""
        with self._books:
            self._metrics.begin(model)
            self.agreement.begin(model, revision)

    def end(self, model: LoadedModel) -> None:
        """Forget a model's statistics, and drop its waiting samples."""
        with self._books:
            self.agreement.end(model)
            self._metrics.end(model)
        with self._lock:
            for job in self._waiting.remove(model):
                job.drop(UNLOADED)

    def offer(self, sample: Sample) -> None:
        """Perhaps sample an answered request; never blocks and never raises."""
        # random() is always below 1, so a rate of 1 samples everything
        if self.rate == 0 or self._random.random() >= self.rate:
            return
        (other,) = set(BACKENDS) - {sample.lane.backend}
        ticket = Ticket(sample.lane._replace(backend=other), sample.items, deadline=float("inf"))
        with self._lock:
            now = self._clock()
            self._drop_overdue(now)
            ticket.future.add_done_callback(partial(self._computed, sample, other))
            job = _Job(ticket, sample.work.characters, now + self.limits.patience_s)
            if self._closed:
                job.drop(DRAINING)
            elif not self.agreement.knows(sample.lane.loaded):  # the model has just been released
                job.drop(UNLOADED)
            elif self._waiting.has_room(job, self.limits):
                self._waiting.push(job)
            else:
                job.drop(QUEUE_FULL)

    def pause(self) -> float | None:
        """Return how long the engine thread should wait for requests before it calls `take`; None: for ever."""
        if self.rate == 0:
            return None
        return _PAUSE_S if self._waiting.jobs else _LOOK_S

    def take(self) -> Batch | None:
        """Return one sequence to compute now, or None; for the engine thread, when no request waits."""
        if not self._waiting.jobs or not self._idle():
            return None
        with self._lock:
            self._drop_overdue(self._clock())
            while self._waiting.jobs:
                job = self._waiting.jobs[0]
                if job.ticket.future.done():  # an earlier sequence of the job failed
                    self._waiting.pop()
                    continue
                entry = Entry(job.ticket, job.begun)
                job.begun += 1
                if job.begun == len(job.ticket.items):
                    self._waiting.pop()
                return Batch(job.ticket.lane, (entry,), spare=True)
        return None

    def dropped(self) -> dict[str, int]:
        """Return the number of dropped samples by reason."""
        return self._metrics.dropped_counts()

    def waiting(self) -> int:
        """Return the number of samples that wait for an idle moment."""
        return len(self._waiting.jobs)

    def close(self) -> None:
        """Drop all waiting samples and take no more."""
        with self._lock:
            self._closed = True
            while self._waiting.jobs:
                self._waiting.pop().drop(DRAINING)

    def shut_down(self) -> None:
        """Stop the comparing thread; call after `close`, when the engine thread has stopped."""
        self._thread.shutdown(wait=True)

    def _drop_overdue(self, now: float) -> None:
        while self._waiting.jobs and self._waiting.jobs[0].expires <= now:
            self._waiting.pop().drop(BUSY)

    def _count_drop(self, reason: str) -> None:
        self._metrics.dropped.labels(reason).inc()

    def _computed(self, sample: Sample, other: str, future: Future[list[Logits]]) -> None:
        """Count a dropped sample; else, on the engine thread, pass it to the comparing thread."""
        error = future.exception()
        if isinstance(error, _Dropped):
            self._count_drop(error.reason)
        elif not self.agreement.knows(sample.lane.loaded):  # its engine may have been released, too
            self._count_drop(UNLOADED)
        elif error is not None:
            self._count_drop(FAILED)
        elif self._closed:
            self._count_drop(DRAINING)
        else:
            self._thread.submit(self._compare, sample, other, future.result())

    def _compare(self, sample: Sample, other: str, logits: list[Logits]) -> None:
        by_backend = {sample.lane.backend: sample.logits, other: logits}
        sides = (Side(backend, sample.work, sample.items, by_backend[backend]) for backend in BACKENDS)
        try:
            cases = compare_request(sample.request_id, *sides, with_texts=self.with_texts)
        except Exception:  # nobody reads this thread's result: an error that is not logged here is lost
            log.exception("the shadow comparison of request %s failed", sample.request_id)
            self._count_drop(FAILED)
            return
        model = sample.lane.loaded
        with self._books:
            known = self.agreement.knows(model)
            if known:
                for case in cases:
                    self._metrics.observe(model, case.comparison)
                self.agreement.record(model, cases)
        if not known:
            self._count_drop(UNLOADED)
