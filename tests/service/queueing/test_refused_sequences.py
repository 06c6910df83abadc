"""What an engine refuses for one sequence reaches that request alone: its neighbours in the batch are answered."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from q8core.arrays import Logits
from q8core.checkpoint import Checkpoint
from q8core.engines import Engine, TokenBatch, load_engine
from q8core.errors import InputError
from service.core import Service
from service.errors import Draining, InferenceFailed
from service.http.app import create_app
from service.lifecycle import Lifecycle, State
from service.queueing.batcher import Batch, BatchQueue, Lane, QueueLimits, Ticket, WorkItem
from service.queueing.engine_thread import EngineThread
from service.queueing.throughput import Throughput
from service.settings import Settings
from service.telemetry.metrics import create_metrics
from tests.service.conftest import open_registry
from tests.service.http.test_metrics_route import value
from tests.service.running import wait_until
from tests.service.tiny_checkpoints import POSITIONS

GOOD = "good"
BAD = ("token type", "negative type", "id", "negative id", "far id", "too long", "empty", "types missing")


def make_item(kind: str, length: int, vocabulary: int, random: Random) -> WorkItem:
    if kind == "too long":
        length = POSITIONS + length
    ids = [random.randrange(vocabulary) for _ in range(length)]
    types = [random.randrange(2) for _ in range(length)]
    place = random.randrange(length)
    wrong = {"id": vocabulary, "negative id": -1, "far id": 2**40, "token type": 2, "negative type": -1}
    if kind in wrong:
        (types if kind.endswith("type") else ids)[place] = wrong[kind]
    if kind == "empty":
        ids, types = [], []
    if kind == "types missing":
        types.pop()
    return WorkItem(ids, types)


def alone(engine: Engine, item: WorkItem) -> Logits:
    batch = TokenBatch.pack([(item.input_ids, item.token_type_ids)])
    return batch.split(engine.infer(batch), engine.reads)[0]


def refusal(engine: Engine, item: WorkItem) -> str | None:
    try:
        alone(engine, item)
    except InputError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def engines(classify_folder: Path, qa_folder: Path) -> dict[Lane, Engine]:
    """Kernels that compute a sequence in a batch with the very bits that they compute alone."""
    loaded: dict[Lane, Engine] = {}
    for task, folder in (("classify", classify_folder), ("qa", qa_folder)):
        for backend, kernel in (("fp32", "native"), ("int8", "native"), ("int8", "fbgemm")):
            loaded[Lane(task, backend, kernel)] = load_engine(
                Checkpoint.open(folder), backend, kernel=kernel, threads=1
            )
    return loaded


@dataclass
class Counting:
    """A real engine that counts what it has computed."""

    engine: Engine
    batches: int = 0
    lengths: list[int] = field(default_factory=list)

    @property
    def reads(self) -> str:
        return self.engine.reads

    def infer(self, batch: TokenBatch) -> Logits:
        logits = self.engine.infer(batch)
        self.batches += 1
        self.lengths += batch.lengths
        return logits


class Nothing:
    def pause(self) -> float | None:
        return None

    def take(self) -> Batch | None:
        return None


@dataclass
class Thread:
    """An engine thread's loop, run here over what waits: all tickets of a lane in one batch."""

    counted: dict[Lane, Counting]

    def __post_init__(self) -> None:
        lanes = tuple(self.counted)
        self.metrics = create_metrics(lanes)
        self.throughput = Throughput(lanes)
        self.queue = BatchQueue(lanes, QueueLimits(10**6, 10**6, 10**6), lambda _: None)

    def serve(self, tickets: list[Ticket]) -> None:
        for ticket in tickets:
            self.queue.put(ticket)
        self.queue.close(Draining("end"))
        counts = self.metrics.engines
        thread = EngineThread(lambda _: self.counted, self.queue, self.throughput, Lifecycle(), counts, Nothing())
        thread.run()

    def count(self, name: str, lane: Lane) -> float:
        labels = {"task": lane.task, "backend": lane.backend}
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


# two tokens at least, as tokenizers make them: a batch of single tokens does not tell rows of tokens from rows of texts
sequence = st.tuples(st.sampled_from((GOOD, GOOD, GOOD, *BAD)), st.integers(2, POSITIONS))


@settings(max_examples=40, deadline=None)
@given(
    requests=st.lists(st.lists(sequence, min_size=1, max_size=3), min_size=1, max_size=12), seed=st.integers(0, 10**6)
)
def test_neighbours_of_refused_sequences_get_the_logits_they_get_alone(
    engines: dict[Lane, Engine], requests: list[list[tuple[str, int]]], seed: int
) -> None:
    for lane, engine in engines.items():
        random, counting = Random(seed), Counting(engine)
        vocabulary = engine.describe()["vocabulary"]
        items = [[make_item(kind, n, vocabulary, random) for kind, n in request] for request in requests]  # type: ignore[arg-type]
        tickets = [Ticket(lane, own, deadline=float("inf")) for own in items]
        thread = Thread({lane: counting})
        thread.serve(tickets)
        good_items = 0
        for request, own, ticket in zip(requests, items, tickets, strict=True):
            refusals = {refusal(engine, item) for item in own} - {None}
            assert bool(refusals) == any(kind != GOOD for kind, _ in request)
            error = ticket.future.exception(0)
            if refusals:
                assert isinstance(error, InputError)
                assert str(error) in refusals
            else:
                found = ticket.future.result(0)
                assert all(np.array_equal(row, alone(engine, item)) for row, item in zip(found, own, strict=True))
                good_items += len(own)
        good = sum(kind == GOOD for request in requests for kind, _ in request)
        assert good_items <= len(counting.lengths) <= good, "nothing good is left out, nothing is computed twice"
        assert thread.count("q8bert_batches_total", lane) == counting.batches
        assert thread.count("q8bert_inferences_total", lane) == len(counting.lengths)
        tokens = thread.metrics.registry.get_sample_value(
            "q8bert_tokens_total", {"backend": lane.backend, "kind": "real"}
        )
        assert tokens == sum(counting.lengths)
        assert (thread.throughput.tokens_per_second(lane) is None) == (not counting.lengths)
        assert (thread.queue.waiting_requests(), thread.queue.waiting_tokens()) == (0, 0)


def test_good_sequences_are_computed_in_few_batches(engines: dict[Lane, Engine]) -> None:
    lane, engine = next(iter(engines.items()))
    random, counting = Random(0), Counting(engine)
    kinds = [GOOD] * 64
    kinds[21] = "token type"
    items = [make_item(kind, 5, engine.describe()["vocabulary"], random) for kind in kinds]  # type: ignore[arg-type]
    Thread({lane: counting}).serve([Ticket(lane, [item], deadline=float("inf")) for item in items])
    assert (len(counting.lengths), counting.batches) == (63, 6)  # halves of 64, 32, ... 2


class Broken:
    """Refuses one token, and fails at another."""

    def __init__(self, engine: Engine, refused: int, fatal: int) -> None:
        self.engine, self.refused, self.fatal, self.reads = engine, refused, fatal, engine.reads

    def infer(self, batch: TokenBatch) -> Logits:
        ids = batch.input_ids.tolist()
        if self.refused in ids:
            raise InputError("not that one")
        if self.fatal in ids:
            raise RuntimeError("broken")
        return self.engine.infer(batch)


def test_a_fault_beside_a_refusal_leaves_nobody_waiting(engines: dict[Lane, Engine]) -> None:
    lane, engine = next(iter(engines.items()))
    tickets = [Ticket(lane, [WorkItem([n], [0])], deadline=float("inf")) for n in (5, 7, 6, 5)]
    Thread({lane: Broken(engine, refused=7, fatal=6)}).serve(tickets)  # type: ignore[dict-item]
    errors = [type(ticket.future.exception(0)) for ticket in tickets]
    assert errors == [type(None), InputError, InferenceFailed, InferenceFailed]


def test_logits_that_do_not_fit_are_the_engines_fault(engines: dict[Lane, Engine]) -> None:
    class Short(Counting):
        def infer(self, batch: TokenBatch) -> Logits:
            return np.zeros((len(batch.lengths) + batch.tokens, 3), np.float32)

    lane, engine = next(iter(engines.items()))
    tickets = [Ticket(lane, [WorkItem([5, 6], [0, 0])], deadline=float("inf")) for _ in range(3)]
    Thread({lane: Short(engine)}).serve(tickets)
    assert {type(ticket.future.exception(0)) for ticket in tickets} == {InferenceFailed}


class Served:
    """A service whose engine refuses a token, and computes only while its gate is open."""

    def __init__(self, client: TestClient, service: Service, gate: threading.Event) -> None:
        self.client, self.service, self.gate = client, service, gate


@pytest.fixture(scope="module")
def served(classify_folder: Path) -> Iterator[Served]:
    registry = open_registry(classify_folder, backends=("int8",))
    token, gate = registry.models["tiny-classify"].tokenizer.token_to_id("paris"), threading.Event()
    load = registry.load

    class Gated(Broken):
        def infer(self, batch: TokenBatch) -> Logits:
            assert gate.wait(240)
            return super().infer(batch)

    registry.load = lambda stop: {k: Gated(e, token, -1) for k, e in load(stop).items()}  # type: ignore
    app = create_app(Settings(backends=("int8",), threads=1), registry)
    with TestClient(app, raise_server_exceptions=False) as client:
        assert app.state.service.lifecycle.wait_until_settled(240) is State.READY
        yield Served(client, app.state.service, gate)


def test_other_clients_in_the_batch_are_answered(served: Served) -> None:
    client, queue = served.client, served.service.queue
    served.gate.set()
    expected = client.post("/classify", json={"inputs": "good film"}).json()
    batches, inferences = (
        value(client, f"q8bert_{name}_total", task="classify", backend="int8") for name in ("batches", "inferences")
    )
    bodies = [{"inputs": "good film"}, {"inputs": "paris"}, {"inputs": ["good film", "in paris", "good film"]}] * 4
    served.gate.clear()
    with ThreadPoolExecutor(len(bodies) + 1) as pool:
        first = pool.submit(client.post, "/classify", json={"inputs": "good film"})
        wait_until(lambda: served.service.worker.busy_seconds > 0)
        jobs = [pool.submit(client.post, "/classify", json=body) for body in bodies]
        wait_until(lambda: queue.waiting_requests() == len(bodies))
        served.gate.set()
        answers = [job.result() for job in jobs]
    assert first.result().json() == expected
    for body, answer in zip(bodies, answers, strict=True):
        if body == {"inputs": "good film"}:
            assert (answer.status_code, answer.json()) == (200, expected)
        else:
            found = answer.json()
            assert (answer.status_code, found["error_type"], found["error"]) == (422, "validation", "not that one")
    assert served.service.pipeline.in_flight.count() == 0
    assert (queue.waiting_requests(), queue.waiting_tokens()) == (0, 0)
    assert value(client, "q8bert_inferences_total", task="classify", backend="int8") >= inferences + 1 + 4
    assert value(client, "q8bert_batches_total", task="classify", backend="int8") > batches + 1
