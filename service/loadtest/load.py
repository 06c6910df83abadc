"""Sends requests and notes when each was meant to be sent, was sent, and was answered.

Open loop: requests are sent at random times drawn beforehand (a Poisson process), whether or not earlier ones were
answered, and latency is measured from the drawn time. A generator that waits for answers would stop sending while the
service stalls, and its percentiles would omit exactly the requests that had to wait ("coordinated omission").
Closed loop: a number of clients, each of which sends its next request as soon as it is answered; finds the highest
throughput.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.loadtest.bodies import Ask
from service.loadtest.connection import Pool, Reply
from service.loadtest.target import Target

TIMEOUT, CONNECTION, UNSENT, UNFINISHED = "timeout", "connection", "unsent", "unfinished"
"""Outcomes of requests without an answer; the outcome of an answered one is its status and error_type."""
OK = "200"


@dataclass(frozen=True)
class Load:
    """The load: ``rate`` requests per second, or ``concurrency`` clients; exactly one of them.

    Args:
        rate: requests per second of the open loop.
        concurrency: clients of the closed loop.
        duration_s: how long requests are measured.
        warmup_s: how long it runs before that.
        timeout_s: longest time from sending to answer.
        connections: most requests in flight; further ones wait, and count as late.
        seed: of arrival times and of the choice of requests.
    """

    rate: float | None
    concurrency: int | None
    duration_s: float
    warmup_s: float
    timeout_s: float
    connections: int
    seed: int

    @property
    def total_s(self) -> float:
        """How long requests are sent, in seconds."""
        return self.warmup_s + self.duration_s


@dataclass(frozen=True, slots=True)
class Sample:
    """One request; times are in seconds since the start of the load.

    ``inference_s``, ``tokens`` and ``retry_after_s`` are from the headers of the answer.
    """

    task: str
    outcome: str
    intended: float
    sent: float
    finished: float
    inference_s: float | None = None
    tokens: int = 0
    retry_after_s: float | None = None


@dataclass
class Record:
    """Everything that was measured; ``seconds`` is less than the load's if the test was stopped early."""

    samples: list[Sample] = field(default_factory=lambda: list[Sample]())
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    complete: bool = False


def arrivals(rate: float, seconds: float, draw: random.Random) -> Iterator[float]:
    """Yield the times of a Poisson process of this rate, until ``seconds``."""
    at = draw.expovariate(rate)
    while at < seconds:
        yield at
        at += draw.expovariate(rate)


def run_load(target: Target, asks: Sequence[Ask], load: Load) -> Record:
    """Send the load; Ctrl-C stops it early and keeps what was measured until then.

    Raises:
        OSError: nothing listens there.
    """
    record = Record()
    begin, cpu_begin = time.perf_counter(), time.process_time()
    try:
        asyncio.run(_Generator(target, asks, load, record).run())
        record.complete = True
    except KeyboardInterrupt:
        pass
    record.seconds = min(time.perf_counter() - begin, load.total_s)
    record.cpu_seconds = (time.process_time() - cpu_begin) * record.seconds / (time.perf_counter() - begin)
    return record


class _Generator:
    def __init__(self, target: Target, asks: Sequence[Ask], load: Load, record: Record) -> None:
        self._target = target
        self._asks = asks
        self._load = load
        self._record = record
        self._draw = random.Random(load.seed)
        self._start = 0.0

    async def run(self) -> None:
        load = self._load
        self._pool = Pool(self._target, load.concurrency or load.connections)
        await self._pool.connect()
        self._start = time.perf_counter()
        try:
            await (self._open_loop(load.rate) if load.rate else self._closed_loop(load.concurrency or 1))
        finally:
            self._pool.close()

    async def _open_loop(self, rate: float) -> None:
        under_way: set[asyncio.Task[None]] = set()
        choose = random.Random(self._load.seed + 1)
        for intended in arrivals(rate, self._load.total_s, self._draw):
            await asyncio.sleep(max(0.0, intended - self._now()))  # yields to the event loop in any case
            task = asyncio.create_task(self._one(choose.choice(self._asks), intended))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        if under_way:
            _, left = await asyncio.wait(under_way, timeout=self._load.timeout_s + 1)
            for task in left:  # each records its own outcome
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _closed_loop(self, clients: int) -> None:
        async def client() -> None:
            while self._now() < self._load.total_s:
                await self._one(self._draw.choice(self._asks), self._now())

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client())

    async def _one(self, ask: Ask, intended: float) -> None:
        sent = [0.0]
        try:
            reply = await self._pool.ask(ask.payload, self._load.timeout_s, sent)
        except TimeoutError:
            self._note(ask, TIMEOUT, intended, sent[0])
        except OSError:
            self._note(ask, CONNECTION, intended, sent[0])
            await asyncio.sleep(0.01)  # else a closed loop against a port where nothing listens would spin
        except asyncio.CancelledError:
            self._note(ask, UNFINISHED if sent[0] else UNSENT, intended, sent[0])
            raise
        else:
            self._record.samples.append(_sample(ask, reply, intended, sent[0] - self._start, self._start))

    def _note(self, ask: Ask, outcome: str, intended: float, sent: float) -> None:
        now = self._now()
        self._record.samples.append(Sample(ask.task, outcome, intended, sent - self._start if sent else now, now))

    def _now(self) -> float:
        return time.perf_counter() - self._start


def _sample(ask: Ask, reply: Reply, intended: float, sent: float, start: float) -> Sample:
    inference, tokens = reply.headers.get("x-inference-time"), reply.headers.get("x-compute-tokens")
    retry_after = reply.headers.get("retry-after", "")
    return Sample(
        ask.task,
        OK if reply.status == 200 else _error_outcome(reply),
        intended,
        sent,
        reply.finished - start,
        None if inference is None else float(inference) / 1000,
        int(tokens or 0),
        float(retry_after) if retry_after.isdecimal() else None,
    )


def _error_outcome(reply: Reply) -> str:
    """Return status and error_type, such as ``429 queue_full``."""
    try:
        body: Any = json.loads(reply.body)
        return f"{reply.status} {body['error_type']}"
    except (ValueError, KeyError, TypeError):
        return str(reply.status)
