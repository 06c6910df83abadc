"""The shadow's queue as a data structure: what is sampled, what waits, what is dropped and what is compared."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from q8core.arrays import Logits
from service.queueing.batcher import Batch, Lane, WorkItem
from service.second_opinion.agreement import Agreement
from service.second_opinion.shadow import Sample, Shadow, ShadowLimits
from service.tasks.schemas import LabelScore
from service.tasks.verdict import LabelVerdict
from service.telemetry.shadow_metrics import DROPS, ShadowMetrics

LIMITS = ShadowLimits(requests=4, tokens=40, patience_s=10)
LANES = [Lane(task, backend, f"a-{task}") for task in ("classify", "qa") for backend in ("fp32", "int8")]


class Words:
    """A request whose logits are its two scores."""

    def __init__(self, task: str, lengths: tuple[int, ...]) -> None:
        self.task, self.inputs = task, len(lengths)
        self.characters = 8 * len(lengths)
        self.items = [WorkItem([7] * n, [0] * n) for n in lengths]

    def verdicts(self, logits: list[Logits]) -> list[LabelVerdict]:
        rows = (sorted(zip("ab", row.tolist(), strict=True), key=lambda pair: -pair[1]) for row in logits)
        return [LabelVerdict(tuple(LabelScore(label=k, score=v) for k, v in row)) for row in rows]

    def sequences(self) -> list[int]:
        return [1] * self.inputs

    def texts(self, place: int) -> dict[str, str]:
        return {"text": f"secret {place}"}


@dataclass
class World:
    """What a shadow sees of the service."""

    now: float = 0.0
    idle: bool = True


def make_shadow(world: World, rate: float = 1.0, seed: int = 0, limits: ShadowLimits = LIMITS) -> Shadow:
    metrics = ShadowMetrics(CollectorRegistry())
    shadow = Shadow(
        rate,
        Agreement(),
        metrics,
        lambda: world.idle,
        limits=limits,
        random=Random(seed),
        clock=lambda: world.now,
    )
    for lane in LANES[::2]:
        shadow.begin(lane.loaded, "abc")
    return shadow


def make_sample(number: int, lane: Lane = LANES[0], lengths: tuple[int, ...] = (5,)) -> Sample:
    work = Words(lane.task, lengths)
    return Sample(str(number), work, work.items, lane, [np.array([0.9, 0.1], np.float32)] * len(lengths))  # type: ignore[arg-type]


def answer(batch: Batch) -> None:
    for ticket, place in batch.entries:
        ticket.resolve(place, np.array([0.8, 0.2], np.float32))


def outcomes(shadow: Shadow) -> tuple[int, dict[str, int]]:
    """Inputs that were compared, and requests that were dropped."""
    found = shadow.agreement.describe()
    return sum(model["compared"] for model in found.values()), shadow.dropped()


@given(st.floats(0, 1), st.integers(0, 2**32), st.lists(st.integers(1, 9), max_size=200))
def test_the_sample_depends_on_the_dice_alone(rate: float, seed: int, lengths: list[int]) -> None:
    limits = ShadowLimits(requests=1000, tokens=100_000)
    shadow = make_shadow(World(), rate, seed, limits)
    dice = Random(seed)
    for number, length in enumerate(lengths):
        shadow.offer(make_sample(number, LANES[number % 4], (length,)))
    taken = []
    while (batch := shadow.take()) is not None:
        taken.append(batch.tokens)
        answer(batch)
    shadow.shut_down()
    assert taken == [length for length in lengths if rate and dice.random() < rate]
    assert outcomes(shadow) == (len(taken), dict.fromkeys(DROPS, 0))


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
def test_the_share_is_the_rate(rate: float) -> None:
    shadow = make_shadow(World(), rate, seed=5, limits=ShadowLimits(requests=10**6, tokens=10**9))
    for number in range(5000):
        shadow.offer(make_sample(number))
    # five standard deviations of the binomial distribution
    assert shadow.waiting() == pytest.approx(5000 * rate, abs=5 * (5000 * rate * (1 - rate)) ** 0.5)
    shadow.close()
    shadow.shut_down()


step = st.one_of(
    st.tuples(st.just("offer"), st.sampled_from(LANES), st.lists(st.integers(1, 20), min_size=1, max_size=4)),
    st.tuples(st.just("offer"), st.sampled_from(LANES), st.lists(st.integers(1, 20), min_size=1, max_size=4)),
    st.tuples(st.just("take"), st.booleans()),
    st.tuples(st.just("idle"), st.booleans()),
    st.tuples(st.just("wait"), st.floats(0, 6)),
    st.tuples(st.just("close")),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(step, max_size=50))
def test_any_history_ends_each_sample_once_within_bounds(steps: list[tuple[object, ...]]) -> None:
    world = World()
    shadow = make_shadow(world)
    offered: list[Sample] = []
    inputs_failed = closed = False

    for kind, *arguments in steps:
        if kind == "offer":
            lane, lengths = arguments
            offered.append(make_sample(len(offered), lane, tuple(lengths)))  # type: ignore[arg-type]
            shadow.offer(offered[-1])
        elif kind == "take":
            batch = shadow.take()
            if batch is None:
                continue
            assert world.idle, "nothing is computed while requests are in the house"
            assert not closed, "nothing is computed once draining has begun"
            assert batch.spare
            (entry,) = batch.entries
            sample = next(one for one in offered if one.items is entry.ticket.items)
            assert batch.lane.task == sample.lane.task
            assert {batch.lane.backend, sample.lane.backend} == {"fp32", "int8"}
            if arguments[0]:
                answer(batch)
            else:
                inputs_failed = True
                entry.ticket.fail(RuntimeError("the engine failed"))
        elif kind == "idle":
            world.idle = bool(arguments[0])
        elif kind == "wait":
            world.now += float(arguments[0])  # type: ignore[arg-type]
        else:
            shadow.close()
            closed = True
        assert shadow.waiting() <= LIMITS.requests
        assert shadow._waiting.tokens <= LIMITS.tokens
        assert shadow.pause() is not None

    world.idle = True
    while (batch := shadow.take()) is not None:
        answer(batch)
    shadow.close()
    shadow.shut_down()
    compared, dropped = outcomes(shadow)
    whole = sum(len(one.items) for one in offered)
    assert compared <= whole
    assert (dropped["failed"] > 0) == inputs_failed
    if not any(dropped.values()):
        assert compared == whole
    described = shadow.agreement.describe().values()
    ids = {entry["request_id"] for model in described for entry in model["worst"]}
    if compared <= 20:  # then every case is still shown
        assert len(ids) + sum(dropped.values()) == len(offered)


def test_full_means_dropped_with_that_reason() -> None:
    world = World(idle=False)
    shadow = make_shadow(world)
    for number in range(6):
        shadow.offer(make_sample(number))
    assert (shadow.waiting(), shadow.dropped()["queue_full"]) == (4, 2)
    tokens = make_shadow(world)
    tokens.offer(make_sample(0, lengths=(20, 20)))
    tokens.offer(make_sample(1, lengths=(1,)))
    tokens.offer(make_sample(2, lengths=(41,)))
    assert (tokens.waiting(), tokens.dropped()["queue_full"]) == (1, 2)
    characters = make_shadow(world, limits=ShadowLimits(characters=17))  # each text has 8
    for number in range(3):
        characters.offer(make_sample(number))
    assert (characters.waiting(), characters.dropped()["queue_full"]) == (2, 1)


def test_no_idle_moment_in_time_means_dropped_as_busy() -> None:
    world = World(idle=False)
    shadow = make_shadow(world)
    shadow.offer(make_sample(0))
    world.now = 9.9
    shadow.offer(make_sample(1))
    assert shadow.take() is None
    world.now, world.idle = 10.0, True
    batch = shadow.take()
    assert batch is not None
    answer(batch)
    shadow.shut_down()
    assert outcomes(shadow) == (1, {**dict.fromkeys(DROPS, 0), "busy": 1})


def test_a_failed_sequence_ends_its_request_alone() -> None:
    shadow = make_shadow(World())
    shadow.offer(make_sample(0, lengths=(1, 2, 3)))
    shadow.offer(make_sample(1, lengths=(4,)))
    first = shadow.take()
    assert first is not None
    first.entries[0].ticket.fail(RuntimeError())
    second = shadow.take()
    assert second is not None
    assert second.tokens == 4, "the rest of a failed request is not computed"
    answer(second)
    shadow.shut_down()
    assert outcomes(shadow) == (1, {**dict.fromkeys(DROPS, 0), "failed": 1})


def test_a_model_that_goes_takes_what_waits_and_its_numbers_along() -> None:
    shadow = make_shadow(World())
    qa = Lane("qa", "fp32", "a-qa")
    for number, lane in enumerate((LANES[0], qa, LANES[0])):
        shadow.offer(make_sample(number, lane, (5,)))
    computed = shadow.take()
    assert computed is not None
    model = LANES[0].loaded
    shadow.end(model)
    assert (shadow.waiting(), shadow._waiting.tokens, shadow._waiting.characters) == (1, 5, 8)
    shadow.begin(model._replace(load=1), "def")
    answer(computed)  # of the model that has gone
    shadow.offer(make_sample(3))  # a request that ended on it
    assert shadow.dropped()["unloaded"] == 3
    shadow.offer(make_sample(4, LANES[0]._replace(load=1)))
    while (batch := shadow.take()) is not None:
        answer(batch)
    shadow.shut_down()
    found = shadow.agreement.describe()
    assert {name: [case["request_id"] for case in m["worst"]] for name, m in found.items()} == {
        "a-qa": ["1"],
        "a-classify": ["4"],
    }
    assert outcomes(shadow) == (2, {**dict.fromkeys(DROPS, 0), "unloaded": 3})


def test_a_comparison_that_ends_after_its_model_counts_for_none() -> None:
    shadow = make_shadow(World())
    shadow.offer(make_sample(0))
    batch = shadow.take()
    assert batch is not None
    with shadow._books:  # the comparing thread has the logits, and waits
        answer(batch)
        model = LANES[0].loaded
        shadow.agreement.end(model)
        shadow._metrics.end(model)
    shadow.shut_down()
    assert shadow.dropped()["unloaded"] == 1
    assert not [s for f in shadow._metrics.comparisons.collect() for s in f.samples if s.labels["model"] == model.name]


def test_switched_off_it_does_nothing() -> None:
    shadow = make_shadow(World(), rate=0)
    shadow.offer(make_sample(0))
    assert (shadow.pause(), shadow.waiting(), shadow.take()) == (None, 0, None)


def test_texts_only_where_wanted() -> None:
    for wanted in (False, True):
        shadow = make_shadow(World())
        shadow.with_texts = wanted
        shadow.offer(make_sample(0))
        batch = shadow.take()
        assert batch is not None
        answer(batch)
        shadow.shut_down()
        assert ("secret" in repr(shadow.agreement.describe())) == wanted
