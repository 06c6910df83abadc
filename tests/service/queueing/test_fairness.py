"""Who waits for whom: short requests beside long documents, whatever arrives while they wait."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import QueueFull
from service.queueing.batcher import Batch, BatchQueue, Lane, QueueLimits, Reserved, Ticket, WorkItem

LANES = (Lane("classify", "int8"), Lane("classify", "fp32"), Lane("qa", "int8"))
LIMITS = QueueLimits(max_batch_tokens=20, max_queue_tokens=10**9, max_queue_requests=10**9)
SHARE = 10


def make_ticket(lane: Lane, lengths: list[int], deadline: float = 1e9) -> Ticket:
    return Ticket(lane, [WorkItem([7] * n, [0] * n) for n in lengths], deadline)


def make_queue(limits: QueueLimits = LIMITS) -> BatchQueue:
    return BatchQueue(LANES, limits, lambda _: None, lambda: 0.0)


def take(queue: BatchQueue) -> Batch:
    batch = queue.take(timeout=0)
    assert batch is not None
    return batch


lane = st.sampled_from(LANES)
short = st.tuples(lane, st.lists(st.integers(1, SHARE), min_size=1, max_size=1))
document = st.tuples(lane, st.lists(st.integers(1, 30), min_size=2, max_size=12).filter(lambda n: sum(n) > SHARE))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.one_of(short, document), max_size=12),
    short,
    st.lists(st.one_of(short, document, document), min_size=1, max_size=8),
)
def test_a_short_request_waits_for_short_ones_before_it_and_never_for_documents(
    before: list[tuple[Lane, list[int]]],
    probed: tuple[Lane, list[int]],
    flood: list[tuple[Lane, list[int]]],
) -> None:
    queue = make_queue()
    for where, lengths in before:
        queue.put(make_ticket(where, lengths))
    probe = make_ticket(*probed)
    queue.put(probe)
    # Of each lane: a turn of its documents, and per short request before the probe a batch with it and at most one
    # that a document larger than its share has for itself.
    shorts_ahead = 1 + sum(sum(lengths) <= SHARE for _, lengths in before)
    bound = 2 * len(LANES) + 2 * shorts_ahead
    arrivals = itertools.cycle(flood)
    taken: list[Ticket] = []
    for _ in range(bound):
        for _ in range(3):
            queue.put(make_ticket(*next(arrivals)))
        taken += [entry.ticket for entry in take(queue).entries]
    assert probe in taken


@settings(max_examples=100, deadline=None)
@given(document, st.lists(short, min_size=1, max_size=8))
def test_a_document_gets_its_turns_however_many_short_requests_come(
    wanted: tuple[Lane, list[int]], flood: list[tuple[Lane, list[int]]]
) -> None:
    queue = make_queue()
    ticket = make_ticket(*wanted)
    queue.put(ticket)
    arrivals = itertools.cycle(flood)
    taken: list[Ticket] = []
    # a sequence of three times its share is paid back over three batches
    bound = sum(2 + 2 * len(LANES) * -(-n // SHARE) for n in wanted[1])
    for _ in range(bound):
        queue.put(make_ticket(*next(arrivals)))
        taken += [entry.ticket for entry in take(queue).entries]
    assert taken.count(ticket) == len(ticket.items)


def test_windows_of_a_document_are_spread_over_batches_beside_short_requests() -> None:
    queue = make_queue()
    queue.put(make_ticket(LANES[2], [5] * 8))
    for _ in range(4):
        queue.put(make_ticket(LANES[2], [4]))
    mix = [[entry.item.tokens for entry in take(queue).entries] for _ in range(3)]
    # with no short one left, windows fill a whole batch
    assert mix == [[5, 5, 4, 4], [5, 5, 4, 4], [5, 5, 5, 5]]


def test_a_document_of_one_lane_leaves_the_engine_to_another_lane_after_each_turn() -> None:
    queue = make_queue()
    queue.put(make_ticket(LANES[2], [20] * 50))
    assert take(queue).lane == LANES[2]
    queue.put(make_ticket(LANES[0], [4]))
    queue.put(make_ticket(LANES[0], [4]))
    assert [take(queue).lane for _ in range(2)] == [LANES[0], LANES[2]]


def test_room_in_the_queue_is_kept_for_short_requests() -> None:
    queue = make_queue(QueueLimits(max_batch_tokens=20, max_queue_tokens=160, max_queue_requests=100))
    queue.put(make_ticket(LANES[0], [20] * 6))
    with pytest.raises(QueueFull, match="no room for 40 more"):
        queue.put(make_ticket(LANES[0], [20, 20]))
    queue.put(make_ticket(LANES[0], [20]))  # 140 of 160: up to seven eighths
    with pytest.raises(QueueFull):
        queue.put(make_ticket(LANES[0], [11]))
    queue.put(make_ticket(LANES[0], [10]))
    queue.put(make_ticket(LANES[0], [10]))
    with pytest.raises(QueueFull):
        queue.put(make_ticket(LANES[0], [1]))


def test_a_document_may_fill_an_empty_queue() -> None:
    queue = make_queue(QueueLimits(max_batch_tokens=20, max_queue_tokens=160, max_queue_requests=100))
    queue.put(make_ticket(LANES[0], [20] * 8))
    assert queue.waiting_tokens() == 160


def test_documents_ahead_do_not_refuse_a_short_request_that_will_be_in_time() -> None:
    queue = BatchQueue(LANES, LIMITS, lambda tokens: float(sum(tokens.values())), lambda: 0.0)
    queue.put(make_ticket(LANES[2], [20] * 50))
    with pytest.raises(QueueFull, match="time limit"):
        queue.put(make_ticket(LANES[2], [20], deadline=100.0))
    queue.put(make_ticket(LANES[2], [4], deadline=100.0))


def test_accepted_requests_on_their_way_take_room_too() -> None:
    queue = make_queue(QueueLimits(max_batch_tokens=20, max_queue_tokens=100, max_queue_requests=100))
    queue.check_room(LANES[0], 10, 1e9, Reserved(0, 90))
    with pytest.raises(QueueFull):
        queue.check_room(LANES[0], 10, 1e9, Reserved(0, 91))
    queue.check_room(LANES[0], 10, 1e9, Reserved(99, 0))
    with pytest.raises(QueueFull):
        queue.check_room(LANES[0], 10, 1e9, Reserved(100, 0))


def test_a_refusal_says_how_long_the_work_ahead_takes() -> None:
    limits = QueueLimits(max_batch_tokens=20, max_queue_tokens=100, max_queue_requests=3)
    queue = BatchQueue(LANES, limits, lambda tokens: sum(tokens.values()) / 10, lambda: 0.0)
    queue.put(make_ticket(LANES[0], [20, 20]))
    for tokens, reserved in ((61, Reserved(0, 0)), (1, Reserved(2, 0))):
        with pytest.raises(QueueFull) as refused:
            queue.check_room(LANES[0], tokens, 1e9, reserved)
        assert refused.value.retry_after_s == 4.0
