"""The queue between requests and the engine thread: bounded, fair, with batches by token budget.

A request becomes a `Ticket` with one `WorkItem` per text or window. Items wait in lanes, one lane per engine; the lane
whose next item has waited longest is served next, so no backend or task starves another. Within a lane short requests
and long ones share a batch by the rules of `service.queueing.lane_queue`; an item larger than the budget gets a batch
of its own. No batch waits to be filled: an idle engine takes what is there.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from q8core.arrays import Logits
from service.errors import DeadlineExceeded, QueueFull, ServiceError, TooManyTokens, UnknownModel
from service.queueing.lane_queue import LaneQueue, long_share


class LoadedModel(NamedTuple):
    """One load of a model: the next checkpoint of the same name is another one."""

    task: str
    name: str
    load: int


class Lane(NamedTuple):
    """One engine: a loaded model on a backend; batches never mix lanes.

    Two loads under one name are two lanes, so that requests of a replaced model finish on its own engine.
    """

    task: str
    backend: str
    model: str = ""
    load: int = 0

    @property
    def labels(self) -> tuple[str, str]:
        """Task and backend, the labels of most metrics."""
        return self.task, self.backend

    @property
    def loaded(self) -> LoadedModel:
        """The load of the model, without the backend."""
        return LoadedModel(self.task, self.model, self.load)


@dataclass(frozen=True)
class QueueLimits:
    """Limits of the queue; sequences being computed do not count."""

    max_batch_tokens: int
    max_queue_tokens: int
    max_queue_requests: int

    def is_long(self, tokens: int) -> bool:
        """Whether a request of this many tokens is long; see `service.queueing.lane_queue`."""
        return tokens > long_share(self.max_batch_tokens)

    @property
    def long_queue_tokens(self) -> int:
        """Tokens that long requests may fill the queue to; the rest is kept for short ones."""
        return self.max_queue_tokens - self.max_queue_tokens // 8


@dataclass(eq=False, slots=True)
class WorkItem:
    """One sequence of tokens to run through an engine."""

    input_ids: list[int]
    token_type_ids: list[int]

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        return len(self.input_ids)


@dataclass(eq=False)
class Ticket:
    """The sequences of one request, and a future of all their logits in order, or of the first error."""

    lane: Lane
    items: Sequence[WorkItem]
    deadline: float
    """On the queue's clock."""
    future: Future[list[Logits]] = field(default_factory=lambda: Future[list[Logits]]())
    submitted: float = 0.0
    started: float | None = None
    """When the first of its batches started; None while all of it waits."""
    _logits: dict[int, Logits] = field(default_factory=lambda: dict[int, Logits]())
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(item.tokens for item in self.items)

    def resolve(self, place: int, logits: Logits) -> None:
        """Store one sequence's logits; the last one completes the future."""
        with self._lock:
            self._logits[place] = logits
            if len(self._logits) == len(self.items) and not self.future.done():
                self.future.set_result([self._logits[i] for i in range(len(self.items))])

    def fail(self, error: Exception) -> None:
        """Complete the future with an error, unless it is complete already."""
        with self._lock:
            if not self.future.done():
                self.future.set_exception(error)


class Entry(NamedTuple):
    """One item of a ticket, in a lane."""

    ticket: Ticket
    place: int

    @property
    def item(self) -> WorkItem:
        """The sequence itself."""
        return self.ticket.items[self.place]


@dataclass(frozen=True)
class Batch:
    """Sequences of one lane that are computed together."""

    lane: Lane
    entries: tuple[Entry, ...]
    spare: bool = False
    """Whether no request waits for it: a shadow comparison."""

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(entry.item.tokens for entry in self.entries)


class Reserved(NamedTuple):
    """Accepted requests that are not in the queue yet, and a lower bound on their tokens."""

    requests: int
    tokens: int


NOTHING_RESERVED = Reserved(0, 0)


class BatchQueue:
    """The queue. Thread-safe: requests put and abandon on the event loop, one engine thread takes.

    Args:
        lanes: the engines that exist; a ticket's lane must be one of them.
        limits: limits of batch and queue.
        drain_seconds: estimates the time to compute the given tokens per lane, for early refusal and Retry-After
            (see `service.queueing.throughput`).
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        limits: QueueLimits,
        drain_seconds: Callable[[Mapping[Lane, int]], float | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._drain_seconds = drain_seconds
        self._clock = clock
        # keys are global arrival numbers, so that lanes can be compared by how long their next item has waited
        self._lanes: dict[Lane, LaneQueue[Entry]] = {lane: LaneQueue(limits.max_batch_tokens) for lane in lanes}
        self._keys: dict[Ticket, deque[int]] = {}
        self._arrivals = 0
        self._departures = 0
        self._closed: ServiceError | None = None
        self._changed = threading.Condition()

    def put(self, ticket: Ticket) -> None:
        """Queue all items of a ticket, or none.

        Raises:
            UnknownModel: its engine is not loaded, or not any more.
            TooManyTokens: the ticket alone is larger than the queue.
            QueueFull: no room now, or the work ahead would outlast the ticket's deadline.
            ServiceError: the queue was closed with this error.
        """
        with self._changed:
            self.check_room(ticket.lane, ticket.tokens, ticket.deadline)
            ticket.submitted = self._clock()
            lane, long = self._lanes[ticket.lane], self._limits.is_long(ticket.tokens)
            keys = deque(range(self._arrivals, self._arrivals + len(ticket.items)))
            self._arrivals += len(keys)
            for place, (key, item) in enumerate(zip(keys, ticket.items, strict=True)):
                lane.add(key, Entry(ticket, place), item.tokens, long=long)
            self._keys[ticket] = keys
            self._changed.notify()

    @property
    def departures(self) -> int:
        """How often anything has left the queue, and so made room."""
        return self._departures

    def add_lanes(self, lanes: Sequence[Lane]) -> None:
        """Accept tickets of further engines from now on."""
        with self._changed:
            for lane in lanes:
                self._lanes.setdefault(lane, LaneQueue(self._limits.max_batch_tokens))

    def remove_lanes(self, lanes: Sequence[Lane]) -> None:
        """Accept no more tickets of these engines; waiting ones fail."""
        with self._changed:
            stranded = [ticket for ticket in self._keys if ticket.lane in lanes]
            for ticket in stranded:
                self._remove(ticket)
            for lane in lanes:
                del self._lanes[lane]
        for ticket in stranded:
            ticket.fail(UnknownModel(f"the model {ticket.lane.model!r} was unloaded"))

    def check_room(self, lane: Lane, tokens: int, deadline: float, reserved: Reserved = NOTHING_RESERVED) -> None:
        """Raise what `put` would raise for a ticket of this many tokens, before there is a ticket.

        Args:
            lane: the lane it would wait in.
            tokens: its tokens, or a lower bound on them.
            deadline: when its answer is of no use any more, on the queue's clock.
            reserved: other requests that the queue has to keep room for.
        """
        with self._changed:
            if self._closed is not None:
                raise type(self._closed)(str(self._closed))
            if lane not in self._lanes:
                raise UnknownModel(f"the model {lane.model!r} is not loaded for {lane.task} on {lane.backend}")
            limits, long = self._limits, self._limits.is_long(tokens)
            if tokens > limits.max_queue_tokens:
                raise TooManyTokens(
                    f"the request holds {tokens} tokens, the server takes at most "
                    f"{limits.max_queue_tokens} at once; send it in parts"
                )
            waiting = reserved.tokens + sum(queue.tokens for queue in self._lanes.values())
            requests = len(self._keys) + reserved.requests
            if requests >= limits.max_queue_requests:
                raise self._full(f"{requests} requests are waiting already; try later")
            # if nothing else waits, a long request may fill the queue: it could never enter otherwise
            if waiting + tokens > (limits.long_queue_tokens if long and waiting else limits.max_queue_tokens):
                raise self._full(f"{waiting} tokens are waiting, no room for {tokens} more; try later")
            if not waiting:
                return
            if long:
                ahead = self.drain_seconds()
            else:
                ahead = self._drain_seconds({name: queue.tokens_before_short for name, queue in self._lanes.items()})
            if ahead is not None and self._clock() + ahead > deadline:
                raise self._full("the work ahead would outlast the request's time limit; try later", ahead)

    def _full(self, message: str, retry_after_s: float | None = None) -> QueueFull:
        retry = self.drain_seconds() if retry_after_s is None else retry_after_s
        return QueueFull(message, retry_after_s=retry, departures=self._departures)

    def drain_seconds(self) -> float | None:
        """Estimate the time until everything waiting is computed; None if a speed is not known yet."""
        with self._changed:
            return self._drain_seconds({name: queue.tokens for name, queue in self._lanes.items()})

    def take(self, timeout: float | None = None) -> Batch | None:
        """Wait for work and return the next batch; None after ``timeout`` or once closed and empty."""
        with self._changed:
            until = None if timeout is None else self._clock() + timeout
            while True:
                batch = self._next_batch()
                if batch is not None or (self._closed is not None and not self._keys):
                    return batch
                left = None if until is None else until - self._clock()
                if left is not None and left <= 0:
                    return None
                self._changed.wait(left)

    @property
    def finished(self) -> bool:
        """Whether the queue is closed and empty, so that `take` will never return a batch again."""
        with self._changed:
            return self._closed is not None and not self._keys

    def abandon(self, ticket: Ticket, error: Exception) -> None:
        """Remove the waiting items of a ticket and fail it; without effect on a completed ticket."""
        with self._changed:
            self._remove(ticket)
        ticket.fail(error)

    def close(self, error: ServiceError, *, drop_waiting: bool = False) -> None:
        """Refuse new tickets with ``error`` from now on; optionally fail the waiting ones with it too."""
        with self._changed:
            self._closed = error
            dropped = list(self._keys) if drop_waiting else []
            for ticket in dropped:
                self._remove(ticket)
            self._changed.notify_all()
        for ticket in dropped:
            ticket.fail(error)

    def waiting_tokens(self, backend: str | None = None) -> int:
        """Return the waiting tokens, of one backend or of all."""
        with self._changed:
            return sum(queue.tokens for lane, queue in self._lanes.items() if backend in (None, lane.backend))

    def waiting_requests(self, backend: str | None = None) -> int:
        """Return the number of requests with waiting items, of one backend or of all."""
        with self._changed:
            return sum(backend in (None, ticket.lane.backend) for ticket in self._keys)

    def _next_batch(self) -> Batch | None:
        """Evict overdue tickets, then take a batch from the lane whose next item has waited longest."""
        now = self._clock()
        for ticket in [ticket for ticket in self._keys if ticket.deadline <= now]:
            self._remove(ticket)
            ticket.fail(DeadlineExceeded("the request's time limit passed while it waited"))
        ranks = {lane: queue.rank(self._arrivals) for lane, queue in self._lanes.items()}
        self._arrivals += 1  # so that no later arrival shares its number with long items that line up again
        waiting = [(rank, lane) for lane, rank in ranks.items() if rank is not None]
        if not waiting:
            return None
        lane = min(waiting)[1]
        short_waits = any(queue.short_waits for queue in self._lanes.values())
        taken = self._lanes[lane].pop_batch(short_waits_anywhere=short_waits)
        for entry in taken:
            self._leave(entry.ticket, now)
        return Batch(lane, tuple(taken))

    def _leave(self, ticket: Ticket, now: float) -> None:
        """Record that a ticket's next item has left the queue; items leave in order of arrival."""
        self._departures += 1
        ticket.started = ticket.started or now
        keys = self._keys[ticket]
        keys.popleft()
        if not keys:
            del self._keys[ticket]

    def _remove(self, ticket: Ticket) -> None:
        self._departures += 1
        # a ticket without waiting items may be of a removed lane
        for key in self._keys.pop(ticket, ()):
            self._lanes[ticket.lane].discard(key)
