"""The queue between requests and the engine thread: bounded, first in first out, batches by token budget.

A request becomes a `Ticket` with one `WorkItem` per text or window. Items wait in lanes, one lane per engine; the
lane whose head has waited longest is served next, so no backend or task starves another. A batch is as long a run
of a lane's head items as fits the token budget; an item larger than the budget goes alone. Nothing waits for a
batch to fill: an idle engine takes what is there.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from service.errors import DeadlineExceeded, QueueFull, ServiceError, TooManyTokens


class Lane(NamedTuple):
    """One engine: a task on a backend."""

    task: str
    backend: str


@dataclass(frozen=True)
class QueueLimits:
    """Bounds of the queue; what is being computed does not count."""

    max_batch_tokens: int
    max_queue_tokens: int
    max_queue_requests: int


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
    """One request's sequences and the single outcome they lead to: all logits in order, or the first error."""

    lane: Lane
    items: Sequence[WorkItem]
    deadline: float
    """On the queue's clock."""
    future: Future[list[Tensor]] = field(default_factory=lambda: Future[list["Tensor"]]())
    submitted: float = 0.0
    started: float | None = None
    """When the first of its batches began; None while all of it waits."""
    _logits: dict[int, Tensor] = field(default_factory=lambda: dict[int, "Tensor"]())
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(item.tokens for item in self.items)

    def resolve(self, place: int, logits: Tensor) -> None:
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
    """A ticket's item in a lane."""

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

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(entry.item.tokens for entry in self.entries)


class BatchQueue:
    """Thread-safe: requests put and abandon on the event loop, one engine thread takes.

    Args:
        lanes: the engines that exist; a ticket's lane must be one of them.
        limits: bounds of batch and queue.
        drain_seconds: estimate of the time to compute the given tokens per lane, for early refusal and
            Retry-After (see `service.admission`).
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
        # the key is a global arrival number, so lanes can be compared by the age of their heads
        self._lanes: dict[Lane, OrderedDict[int, Entry]] = {lane: OrderedDict() for lane in lanes}
        self._keys: dict[Ticket, deque[int]] = {}
        self._tokens = dict.fromkeys(lanes, 0)
        self._arrivals = 0
        self._closed: ServiceError | None = None
        self._changed = threading.Condition()

    def put(self, ticket: Ticket) -> None:
        """Queue all items of a ticket, or none.

        Raises:
            TooManyTokens: the ticket alone is larger than the queue.
            QueueFull: no room now, or the work ahead would outlast the ticket's deadline.
            ServiceError: the queue was closed with this error.
        """
        with self._changed:
            self.check_room(ticket.lane, ticket.tokens, ticket.deadline)
            ticket.submitted = self._clock()
            lane = self._lanes[ticket.lane]
            keys = deque(range(self._arrivals, self._arrivals + len(ticket.items)))
            self._arrivals += len(keys)
            for place, key in enumerate(keys):
                lane[key] = Entry(ticket, place)
            self._keys[ticket] = keys
            self._tokens[ticket.lane] += ticket.tokens
            self._changed.notify()

    def check_room(self, lane: Lane, tokens: int, deadline: float) -> None:
        """Raise what `put` would raise for a ticket of this many tokens; the caller need not have it yet."""
        with self._changed:
            if self._closed is not None:
                raise type(self._closed)(str(self._closed))
            if tokens > self._limits.max_queue_tokens:
                raise TooManyTokens(
                    f"the request holds {tokens} tokens, the server takes at most "
                    f"{self._limits.max_queue_tokens} at once; send it in parts"
                )
            waiting = sum(self._tokens.values())
            drain = self._drain_seconds(self._tokens)
            if len(self._keys) >= self._limits.max_queue_requests:
                raise QueueFull(f"{len(self._keys)} requests are waiting already; try later", retry_after_s=drain)
            if waiting + tokens > self._limits.max_queue_tokens:
                raise QueueFull(
                    f"{waiting} tokens are waiting, no room for {tokens} more; try later", retry_after_s=drain
                )
            if waiting and drain is not None and self._clock() + drain > deadline:
                raise QueueFull("the work ahead would outlast the request's time limit; try later", retry_after_s=drain)

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

    def abandon(self, ticket: Ticket, error: Exception) -> None:
        """Remove what still waits of a ticket and fail it; without effect on a completed ticket."""
        with self._changed:
            self._remove(ticket)
        ticket.fail(error)

    def close(self, error: ServiceError, *, drop_waiting: bool = False) -> None:
        """Refuse new tickets with ``error`` from now on; optionally fail the waiting ones with it, too."""
        with self._changed:
            self._closed = error
            dropped = list(self._keys) if drop_waiting else []
            for ticket in dropped:
                self._remove(ticket)
            self._changed.notify_all()
        for ticket in dropped:
            ticket.fail(error)

    def waiting_tokens(self, backend: str | None = None) -> int:
        """Tokens that wait, of one backend or of all."""
        with self._changed:
            return sum(n for lane, n in self._tokens.items() if backend in (None, lane.backend))

    def waiting_requests(self, backend: str | None = None) -> int:
        """Requests of which something waits, of one backend or of all."""
        with self._changed:
            return sum(backend in (None, ticket.lane.backend) for ticket in self._keys)

    def _next_batch(self) -> Batch | None:
        while True:
            heads = [(next(iter(entries)), lane) for lane, entries in self._lanes.items() if entries]
            if not heads:
                return None
            lane = min(heads)[1]
            batch = self._fill(lane)
            if batch is not None:
                return batch

    def _fill(self, lane: Lane) -> Batch | None:
        """Pop a lane's head items up to the budget, evicting overdue tickets; None where only those were left."""
        now = self._clock()
        taken: list[Entry] = []
        tokens = 0
        entries = self._lanes[lane]
        while entries:
            entry = entries[next(iter(entries))]
            if entry.ticket.deadline <= now:
                self._remove(entry.ticket)
                entry.ticket.fail(DeadlineExceeded("the request's time limit passed while it waited"))
                continue
            if taken and tokens + entry.item.tokens > self._limits.max_batch_tokens:
                break
            self._pop_head(entry)
            entry.ticket.started = entry.ticket.started or now
            taken.append(entry)
            tokens += entry.item.tokens
        return Batch(lane, tuple(taken)) if taken else None

    def _pop_head(self, entry: Entry) -> None:
        self._lanes[entry.ticket.lane].popitem(last=False)
        keys = self._keys[entry.ticket]
        keys.popleft()  # a ticket's items leave in the order in which they came
        if not keys:
            del self._keys[entry.ticket]
        self._tokens[entry.ticket.lane] -= entry.item.tokens

    def _remove(self, ticket: Ticket) -> None:
        lane = self._lanes[ticket.lane]
        for key in self._keys.pop(ticket, ()):
            self._tokens[ticket.lane] -= lane.pop(key).item.tokens
