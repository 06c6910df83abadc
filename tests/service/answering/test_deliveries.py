"""Results come from another thread in order, a few per iteration of the event loop, by one wake-up."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import Any

import pytest

from service.answering.deliveries import Deliveries
from service.answering.turns import PER_ROUND


def in_a_thread(work: Any) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_batch_takes_one_wake_up_and_several_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        deliveries, results = Deliveries[int](), [Future[int]() for _ in range(3 * PER_ROUND + 1)]
        wakes: list[Any] = []
        wake = loop.call_soon_threadsafe

        def counted(*arguments: Any) -> Any:
            wakes.append(arguments)
            return wake(*arguments)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        tasks = [asyncio.create_task(deliveries.wait(result)) for result in results]
        await asyncio.sleep(0)
        in_a_thread(lambda: [result.set_result(place) for place, result in enumerate(results)])
        assert len(wakes) == 1
        done = list[int]()
        while len(done) < len(results):
            before = len(done)
            await asyncio.sleep(0)
            done = [task.result() for task in tasks if task.done()]
            assert len(done) - before <= PER_ROUND
            assert done == list(range(len(done)))

    asyncio.run(run())


def test_an_exception_is_raised_and_a_cancelled_request_is_no_obstacle() -> None:
    async def run() -> None:
        deliveries, results = Deliveries[int](), [Future[int]() for _ in range(3)]
        tasks = [asyncio.create_task(deliveries.wait(result)) for result in results]
        await asyncio.sleep(0)
        tasks[0].cancel()
        in_a_thread(lambda: results[0].set_result(1))
        in_a_thread(lambda: results[1].set_exception(ValueError("no")))
        in_a_thread(lambda: results[2].set_result(3))
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert isinstance(found[1], ValueError)
        assert found[2] == 3

    asyncio.run(run())


def test_a_result_after_the_loop_has_closed_goes_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    result = Future[int]()

    async def run() -> None:
        task = asyncio.create_task(Deliveries[int]().wait(result))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(run())
    result.set_result(1)
    assert not caplog.records  # of an exception in the callback


def test_many_threads_lose_no_result() -> None:
    async def run() -> None:
        deliveries, results = Deliveries[int](), [Future[int]() for _ in range(400)]
        tasks = [asyncio.create_task(deliveries.wait(result)) for result in results]
        await asyncio.sleep(0)
        parts = [results[start::4] for start in range(4)]
        threads = [threading.Thread(target=lambda own=own: [one.set_result(7) for one in own]) for own in parts]
        for thread in threads:
            thread.start()
        assert await asyncio.wait_for(asyncio.gather(*tasks), 60) == [7] * len(results)

    asyncio.run(run())
