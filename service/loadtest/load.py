"""Sends requests and notes when each was meant to be sent, was sent, and was answered.

Open loop: requests leave at random times drawn beforehand (a Poisson process), whether or not earlier ones were
answered, and a latency counts from the time drawn. A generator that waits for answers instead would stop asking while
the service stalls, and leave out of its percentiles just those that had to wait ("coordinated omission").
Closed loop: so many clients, each of which asks again as soon as it is answered: finds the highest throughput.
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
"""Outcomes of requests without an answer; those with one are told by status and error_type."""
OK = "200"


@dataclass(frozen=True)
class Load:
    """What is sent: ``rate`` requests per second, or ``concurrency`` clients; exactly one of them.

    Args:
        rate: requests per second of the open loop.
        concurrency: clients of the closed loop.
        duration_s: how long it counts.
        warmup_s: how long it runs before.
        timeout_s: longest time from sending to answer.
        connections: requests under way at most; more wait, and are counted as late.
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
        """How long requests are sent."""
        return self.warmup_s + self.duration_s


@dataclass(frozen=True, slots=True)
class Sample:
    """One request; times in seconds since the start of the load.

    ``inference_s`` and ``tokens`` are what the service said in its headers, ``retry_after_s`` what it asked for.
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
    """Everything that was measured; ``seconds`` is less than the load's where it was stopped."""

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
    """Send it all; Ctrl-C ends it early, with what was measured until then.

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
            await asyncio.sleep(max(0.0, intended - self._now()))  # yields in any case
            task = asyncio.create_task(self._one(choose.choice(self._asks), intended))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        if under_way:
            _, left = await asyncio.wait(under_way, timeout=self._load.timeout_s + 1)
            for task in left:  # each notes itself
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
            await asyncio.sleep(0.01)  # else a closed loop against a closed port would spin
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
    """Status and error_type: ``429 queue_full``."""
    try:
        body: Any = json.loads(reply.body)
        return f"{reply.status} {body['error_type']}"
    except (ValueError, KeyError, TypeError):
        return str(reply.status)
