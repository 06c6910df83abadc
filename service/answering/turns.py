"""Lets requests start a few at a time, so that the event loop polls its sockets in between."""

from __future__ import annotations

import asyncio
from collections import deque

PER_ROUND = 4
"""Requests that proceed between two polls of the sockets: some milliseconds of work."""


class Turns:
    """Admits at most `PER_ROUND` requests per event-loop iteration, in order of arrival. Not shared between loops.

    Without it, a burst of hundreds would all start in one iteration, and even requests that only need a quick 429 would
    wait for them. `Deliveries` does the same for their ends.
    """

    def __init__(self) -> None:
        self._left = PER_ROUND
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def wait(self) -> None:
        """Return when it is this caller's turn, which is at once unless several others have just had theirs."""
        loop = asyncio.get_running_loop()
        if self._left == PER_ROUND:
            loop.call_soon(self._next_round)
        if self._left > 0:
            self._left -= 1
            return
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _next_round(self) -> None:
        self._left = PER_ROUND
        while self._waiting and self._left > 0:
            turn = self._waiting.popleft()
            if not turn.done():  # done already if its request was cancelled
                turn.set_result(None)
                self._left -= 1
        if self._left < PER_ROUND:
            asyncio.get_running_loop().call_soon(self._next_round)
