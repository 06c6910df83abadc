"""The queue as a data structure: a model-based property test, and each rule on its own."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from q8core.arrays import Logits
from service.errors import (
    ClientClosed,
    DeadlineExceeded,
    Draining,
    EngineDead,
    QueueFull,
    ServiceError,
    TooManyTokens,
    UnknownModel,
)
from service.queueing.batcher import Batch, BatchQueue, Lane, QueueLimits, Ticket, WorkItem
from service.queueing.throughput import Throughput

LANES = (Lane("classify", "int8"), Lane("classify", "fp32"), Lane("qa", "int8"))
LIMITS = QueueLimits(max_batch_tokens=20, max_queue_tokens=100, max_queue_requests=8)
SHARE = 10


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def make_ticket(lane: Lane, lengths: tuple[int, ...], deadline: float = 1e9) -> Ticket:
    return Ticket(lane, [WorkItem([7] * n, [0] * n) for n in lengths], deadline)


def is_long(ticket: Ticket) -> bool:
    return ticket.tokens > SHARE


def make_queue(clock: Clock, drain: float | None = None, limits: QueueLimits = LIMITS) -> BatchQueue:
    return BatchQueue(LANES, limits, lambda _: drain, clock)


def answer(batch: Batch) -> None:
    """Answer every entry with something that only its own ticket and place can have."""
    for ticket, place in batch.entries:
        ticket.resolve(place, np.array([id(ticket), place]))


def own_answers(ticket: Ticket) -> bool:
    return [row.tolist() for row in ticket.future.result(0)] == [[id(ticket), n] for n in range(len(ticket.items))]


@dataclass
class Recorder:
    """Counts completions per ticket: set_result twice would raise, a callback runs at most once per future."""

    tickets: list[Ticket] = field(default_factory=list)
    completions: dict[int, int] = field(default_factory=dict)

    def add(self, ticket: Ticket) -> None:
        self.tickets.append(ticket)

        def completed(_: Future[list[Logits]]) -> None:
            self.completions[id(ticket)] = self.completions.get(id(ticket), 0) + 1

        ticket.future.add_done_callback(completed)


put = st.tuples(
    st.just("put"), st.sampled_from(LANES), st.lists(st.integers(1, 30), min_size=1, max_size=6), st.floats(0, 20)
)
step = st.one_of(
    put,
    put,
    st.tuples(st.just("take")),
    st.tuples(st.just("abandon"), st.integers(0, 99)),
    st.tuples(st.just("fail"), st.integers(0, 99)),
    st.tuples(st.just("wait"), st.floats(0, 5)),
)


def check_batch(batch: Batch, taken: list[tuple[Ticket, int]], live: list[tuple[Ticket, int]]) -> None:
    """What holds for every batch, by the arrivals that still waited when it was taken."""
    assert {ticket.lane for ticket, _ in taken} == {batch.lane}
    assert batch.tokens <= LIMITS.max_batch_tokens or len(taken) == 1
    tokens: dict[bool, int] = {}
    left: dict[bool, int | None] = {}
    for long in (False, True):
        line = [(t, p) for t, p in live if t.lane == batch.lane and is_long(t) == long]
        own = [(t, p) for t, p in taken if is_long(t) == long]
        assert own == line[: len(own)], "first in, first out within a class, nothing skipped"
        tokens[long] = sum(t.items[p].tokens for t, p in own)
        left[long] = None if len(own) == len(line) else line[len(own)][0].items[line[len(own)][1]].tokens
    if left[False] is not None:
        assert batch.tokens + left[False] > LIMITS.max_batch_tokens, "no room is left that a short one could use"
    short_waits = any(not is_long(ticket) for ticket, _ in live)
    longs = [ticket for ticket, _ in taken if is_long(ticket)]
    if short_waits:
        assert tokens[True] <= SHARE or len(longs) == 1, "a document gets no more than its share"
    elif left[True] is not None:
        assert batch.tokens + left[True] > LIMITS.max_batch_tokens, "alone, documents fill the batch"


@settings(max_examples=300, deadline=None)
@given(st.lists(step, max_size=60))
def test_any_history_keeps_every_rule(steps: list[tuple[object, ...]]) -> None:
    clock, recorder = Clock(), Recorder()
    queue = make_queue(clock)
    arrivals: list[tuple[Ticket, int]] = []  # accepted items in order of arrival

    def take() -> Batch | None:
        live = [(t, p) for t, p in arrivals if not t.future.done() and t.deadline > clock.now]
        batch = queue.take(timeout=0)
        if batch is None:
            assert not live, "an engine that asks gets what there is"
            return None
        taken = [(entry.ticket, entry.place) for entry in batch.entries]
        check_batch(batch, taken, live)
        for pair in taken:
            arrivals.remove(pair)
        return batch

    computing: list[Batch | None] = []

    def finish_computing() -> None:
        while computing:
            if (batch := computing.pop()) is not None:
                answer(batch)

    for kind, *arguments in steps:
        if kind == "put":
            lane, lengths, seconds = arguments
            ticket = make_ticket(lane, tuple(lengths), clock.now + seconds)
            waiting = queue.waiting_tokens()
            try:
                queue.put(ticket)
            except TooManyTokens:
                assert ticket.tokens > LIMITS.max_queue_tokens
            except QueueFull:
                room = LIMITS.long_queue_tokens if is_long(ticket) and waiting else LIMITS.max_queue_tokens
                assert waiting + ticket.tokens > room or queue.waiting_requests() == 8
            else:
                recorder.add(ticket)
                arrivals += [(ticket, place) for place in range(len(lengths))]
        elif kind == "take":
            # the one before is only answered now: whatever happened since happened while it was computed
            finish_computing()
            computing.append(take())
        elif kind == "abandon" and recorder.tickets:
            ticket = recorder.tickets[arguments[0] % len(recorder.tickets)]
            queue.abandon(ticket, ClientClosed("left"))
        elif kind == "fail" and (batch := take()) is not None:
            for ticket in {entry.ticket for entry in batch.entries}:
                queue.abandon(ticket, RuntimeError("engine"))
        elif kind == "wait":
            clock.now += arguments[0]
        waiting_now = [t.items[p].tokens for t, p in arrivals if not t.future.done()]
        assert queue.waiting_tokens() == sum(waiting_now) <= LIMITS.max_queue_tokens
        assert sum(queue.waiting_tokens(b) for b in ("int8", "fp32")) == queue.waiting_tokens()

    finish_computing()
    while (batch := take()) is not None:
        answer(batch)
    assert (queue.waiting_tokens(), queue.waiting_requests()) == (0, 0)
    assert recorder.completions == {id(ticket): 1 for ticket in recorder.tickets}
    for ticket in recorder.tickets:
        assert ticket.future.exception(0) is not None or own_answers(ticket)


def test_oversized_item_goes_alone() -> None:
    queue = make_queue(Clock())
    queue.put(make_ticket(LANES[0], (3, 50, 3)))
    assert [queue.take(0).tokens for _ in range(3)] == [3, 50, 3]  # type: ignore[union-attr]


def test_lane_with_the_oldest_head_goes_first() -> None:
    queue = make_queue(Clock())
    for lane in (LANES[1], LANES[0], LANES[1]):
        queue.put(make_ticket(lane, (15,)))
    assert [queue.take(0).lane for _ in range(3)] == [LANES[1], LANES[0], LANES[1]]  # type: ignore[union-attr]


def test_overdue_work_is_evicted_when_its_turn_comes() -> None:
    clock = Clock()
    queue = make_queue(clock)
    late, good = make_ticket(LANES[0], (5, 5), deadline=1), make_ticket(LANES[0], (5,), deadline=9)
    queue.put(late)
    queue.put(good)
    clock.now = 2
    batch = queue.take(0)
    assert batch is not None
    assert {entry.ticket for entry in batch.entries} == {good}
    assert isinstance(late.future.exception(0), DeadlineExceeded)
    assert not queue.waiting_tokens()


def test_a_deadline_also_stops_the_rest_of_a_document_that_has_begun() -> None:
    clock = Clock()
    queue = make_queue(clock)
    document = make_ticket(LANES[2], (20, 20, 20), deadline=1)
    queue.put(document)
    first = queue.take(0)
    assert first is not None
    clock.now = 2
    assert queue.take(0) is None
    answer(first)
    assert isinstance(document.future.exception(0), DeadlineExceeded)


def test_abandoned_work_leaves_the_queue_at_once() -> None:
    queue = make_queue(Clock())
    ticket = make_ticket(LANES[0], (5, 5))
    queue.put(ticket)
    queue.abandon(ticket, ClientClosed("left"))
    assert (queue.waiting_tokens(), queue.waiting_requests()) == (0, 0)
    assert queue.take(0) is None


def test_work_that_cannot_be_done_in_time_is_refused_now() -> None:
    clock = Clock()
    queue = make_queue(clock, drain=10.0)
    queue.put(make_ticket(LANES[0], (5,), deadline=3))  # nothing ahead of it: it gets its chance
    with pytest.raises(QueueFull, match="time limit") as refused:
        queue.put(make_ticket(LANES[0], (5,), deadline=9))
    assert refused.value.retry_after_s == 10.0
    queue.put(make_ticket(LANES[0], (5,), deadline=11))


@pytest.mark.parametrize("drop", [False, True])
def test_closing_refuses_new_work_and_keeps_or_drops_the_old(drop: bool) -> None:
    queue = make_queue(Clock())
    ticket = make_ticket(LANES[0], (5,))
    queue.put(ticket)
    error: ServiceError = EngineDead("dead") if drop else Draining("draining")
    queue.close(error, drop_waiting=drop)
    with pytest.raises(type(error)):
        queue.put(make_ticket(LANES[0], (5,)))
    batch = queue.take()
    if drop:
        assert batch is None
        assert ticket.future.exception(0) is error
    else:
        assert batch is not None
        answer(batch)
        assert own_answers(ticket)
        assert queue.take() is None


def test_many_threads_lose_and_mix_up_nothing() -> None:
    queue = BatchQueue(LANES, QueueLimits(50, 10**6, 10**6), lambda _: None)
    tickets = [[make_ticket(LANES[(n + k) % 3], (n % 7 + 1, k % 5 + 1)) for n in range(100)] for k in range(4)]

    def engine() -> None:
        while (batch := queue.take()) is not None:
            answer(batch)

    threads = [threading.Thread(target=lambda own=own: [queue.put(t) for t in own]) for own in tickets]
    worker = threading.Thread(target=engine)
    worker.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    queue.close(Draining("end"))
    worker.join(30)
    assert not worker.is_alive()
    assert all(own_answers(ticket) for own in tickets for ticket in own)


@given(st.lists(st.tuples(st.sampled_from(LANES), st.integers(1, 1000), st.floats(0.001, 5)), min_size=1))
def test_throughput_lies_between_the_slowest_and_the_fastest_batch(batches: list[tuple[Lane, int, float]]) -> None:
    throughput = Throughput(LANES)
    for lane, tokens, seconds in batches:
        throughput.observe(lane, tokens, seconds)
    for lane in LANES:
        speeds = [tokens / seconds for where, tokens, seconds in batches if where == lane]
        found = throughput.tokens_per_second(lane)
        if not speeds:
            assert found is None
        else:
            assert found is not None
            assert min(speeds) * 0.999 <= found <= max(speeds) * 1.001


def test_drain_time_adds_up_the_lanes() -> None:
    throughput = Throughput(LANES)
    throughput.observe(LANES[0], 1000, 1.0)
    throughput.observe(LANES[1], 100, 1.0)
    waiting: Mapping[Lane, int] = {LANES[0]: 2000, LANES[1]: 300, LANES[2]: 0}
    assert throughput.drain_seconds(waiting) == pytest.approx(5.0)
    assert throughput.drain_seconds({LANES[2]: 1}) is None


def test_answers_that_come_after_the_client_left_are_dropped() -> None:
    queue = make_queue(Clock())
    ticket = make_ticket(LANES[0], (5, 5))
    queue.put(ticket)
    batch = queue.take(0)
    assert batch is not None
    queue.abandon(ticket, ClientClosed("left"))
    answer(batch)
    assert isinstance(ticket.future.exception(0), ClientClosed)


def test_lanes_come_and_go() -> None:
    queue = make_queue(Clock())
    first, second = (LANES[0]._replace(model="m", load=load) for load in (1, 2))
    with pytest.raises(UnknownModel, match="'m' is not loaded for classify on int8"):
        queue.put(make_ticket(first, (5,)))
    queue.add_lanes([first, second])
    stranded, other, computed = (make_ticket(lane, (5, 5)) for lane in (first, second, first))
    queue.put(computed)
    batch = queue.take(0)
    assert batch is not None
    assert batch.lane == first
    for ticket in (stranded, other):
        queue.put(ticket)
    queue.remove_lanes([first])
    assert isinstance(stranded.future.exception(0), UnknownModel)
    assert (queue.waiting_requests(), queue.waiting_tokens()) == (1, 10)
    queue.abandon(computed, ClientClosed("left"))  # the engine thread may come late with what it has
    queue.abandon(stranded, ClientClosed("left"))
    with pytest.raises(UnknownModel):
        queue.check_room(first, 1, 1e9)
    batch = queue.take(0)
    assert batch is not None
    assert {entry.ticket for entry in batch.entries} == {other}


def test_whatever_leaves_the_queue_is_a_departure() -> None:
    queue = make_queue(Clock())
    taken, left, late = (make_ticket(LANES[0], (5,), deadline=deadline) for deadline in (1e9, 1e9, -1.0))
    seen = [queue.departures]
    for step in (
        lambda: queue.put(taken),
        lambda: queue.take(0),
        lambda: queue.put(left),
        lambda: queue.abandon(left, ClientClosed("left")),
        lambda: queue.put(late),
        lambda: queue.take(0),
    ):
        step()
        seen.append(queue.departures)
    assert [after > before for before, after in itertools.pairwise(seen)] == [False, True] * 3
