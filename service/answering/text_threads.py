"""Where texts are tokenized and logits become answers: on the event loop or on a thread.

A sentence takes a fraction of a millisecond, less than a trip to a thread and back, so it stays on the event loop.
Longer texts go to threads, so that the loop never blocks. Very long ones have a thread of their own: cutting a book
into windows takes a second, and a paragraph should not wait for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

INPUT = 100
"""Fixed cost of one input, in characters of tokenizing time."""
SHORT_TEXT = 600
"""Size of a request (characters plus `INPUT` each) up to which it stays on the event loop: about half a millisecond."""
LONG_TEXT = 20_000
"""Size from which it goes to the thread for long texts: some milliseconds of tokenizing."""


class TextThreads:
    """Runs short requests inline, medium ones on two threads and long ones on a third.

    So a book never delays a paragraph.
    """

    def __init__(self) -> None:
        self._short = ThreadPoolExecutor(max_workers=2, thread_name_prefix="q8bert-text")
        self._long = ThreadPoolExecutor(max_workers=1, thread_name_prefix="q8bert-long-text")

    async def run(self, work: Callable[[], T], *, inputs: int, characters: int) -> T:
        """Run `work`, whose time grows with this many inputs and characters."""
        size = characters + INPUT * inputs
        if size <= SHORT_TEXT:
            return work()
        pool = self._short if size < LONG_TEXT else self._long
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    def close(self) -> None:
        """Finish running work, drop waiting work, stop the threads."""
        for pool in (self._short, self._long):
            pool.shutdown(wait=True, cancel_futures=True)
