from __future__ import annotations

import asyncio

import pytest

from service.answering.turns import PER_ROUND, Turns


def test_a_few_begin_in_each_round_in_their_order() -> None:
    async def run() -> list[int]:
        turns, begun = Turns(), list[int]()

        async def request(number: int) -> None:
            await turns.wait()
            begun.append(number)

        requests = [asyncio.create_task(request(n)) for n in range(5 * PER_ROUND)]
        seen = 0
        while not all(each.done() for each in requests):
            await asyncio.sleep(0)  # one round of the loop
            assert len(begun) - seen <= PER_ROUND
            seen = len(begun)
        return begun

    assert asyncio.run(run()) == list(range(5 * PER_ROUND))


def test_who_left_takes_nobodys_turn() -> None:
    async def run() -> None:
        turns = Turns()
        ahead = [asyncio.create_task(turns.wait()) for _ in range(10 * PER_ROUND)]
        last = asyncio.create_task(turns.wait())
        await asyncio.sleep(0)
        for each in ahead:
            each.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
        assert last.done()

    asyncio.run(run())


def test_a_single_request_does_not_wait() -> None:
    async def run() -> None:
        turns = Turns()
        for _ in range(3):
            with pytest.raises(StopIteration):  # at the end without giving the loop away
                turns.wait().send(None)
            await asyncio.sleep(0)

    asyncio.run(run())
