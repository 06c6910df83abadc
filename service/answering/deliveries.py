"""The way of results from the engine thread to the event loop, a few requests per iteration of it."""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import Future
from functools import partial
from typing import Generic, TypeVar

from service.answering.turns import PER_ROUND

T = TypeVar("T")


class Deliveries(Generic[T]):
    """Hands out results; not shared between event loops.

    A batch completes many requests at once. Waking the loop is a system call, so one wake-up serves all results that
    are there; and they are handed out `PER_ROUND` per iteration, so that the loop polls its sockets in between.
    """

    def __init__(self) -> None:
        self._arrived: deque[tuple[asyncio.Future[T], Future[T]]] = deque()
        self._waking = False

    async def wait(self, result: Future[T]) -> T:
        """Return a result that another thread sets, or raise the exception that it sets."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        result.add_done_callback(partial(self._arrive, loop, answer))
        return await answer

    def _arrive(self, loop: asyncio.AbstractEventLoop, answer: asyncio.Future[T], result: Future[T]) -> None:
        """Called on any thread."""
        self._arrived.append((answer, result))
        # `_hand_out` clears the flag before it looks, so a result that was appended before is seen; two wake-ups
        # instead of one do no harm
        if not self._waking and not loop.is_closed():
            self._waking = True
            loop.call_soon_threadsafe(self._hand_out, loop)

    def _hand_out(self, loop: asyncio.AbstractEventLoop) -> None:
        self._waking = False
        for _ in range(min(PER_ROUND, len(self._arrived))):
            answer, result = self._arrived.popleft()
            if answer.done():  # its request was cancelled
                continue
            error = result.exception()
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result.result())
        if self._arrived:
            self._waking = True
            loop.call_soon(self._hand_out, loop)
