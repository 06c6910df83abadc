"""Lets requests begin, and end, a few at a time, so that the event loop gets around to its sockets in between."""

from __future__ import annotations

import asyncio
from collections import deque

PER_ROUND = 4
"""Requests that go on between two looks at the sockets: some milliseconds of work."""


class Turns:
    """First come, first served, `PER_ROUND` in each round of the event loop; for one loop.

    All requests that have arrived by the time of a round would otherwise begin in it, and all of a batch would be
    answered in one: with hundreds of them those that are only refused would wait for that.
    """

    def __init__(self) -> None:
        self._left = PER_ROUND
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def wait(self) -> None:
        """Return when it is this caller's turn; at once where no more than a few others go on."""
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
            if not turn.done():  # it is, if its request was cancelled
                turn.set_result(None)
                self._left -= 1
        if self._left < PER_ROUND:
            asyncio.get_running_loop().call_soon(self._next_round)
