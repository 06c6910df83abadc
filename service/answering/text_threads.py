"""Where texts become tokens and logits become answers.

A sentence does so on the event loop: it takes a fraction of a millisecond there, and a trip to a thread and back takes
longer. Longer texts go to threads, so that the loop never waits for them; long ones have a thread of their own: cutting
a book into windows takes a second, and a paragraph that came after it shall not wait for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

INPUT = 100
"""Characters whose tokenizing takes as long as an input without any."""
SHORT_TEXT = 600
"""Characters of one request, with those for its inputs, up to which it stays on the event loop: half a millisecond."""
LONG_TEXT = 20_000
"""The same from which on it goes to the thread for long texts: some milliseconds of tokenizing."""


class TextThreads:
    """Two threads for requests of some characters, one for those of many; none for those of few."""

    def __init__(self) -> None:
        self._short = ThreadPoolExecutor(max_workers=2, thread_name_prefix="q8bert-text")
        self._long = ThreadPoolExecutor(max_workers=1, thread_name_prefix="q8bert-long-text")

    async def run(self, work: Callable[[], T], *, inputs: int, characters: int) -> T:
        """Run a function that takes no longer than this many inputs and characters make it take."""
        size = characters + INPUT * inputs
        if size <= SHORT_TEXT:
            return work()
        pool = self._short if size < LONG_TEXT else self._long
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    def close(self) -> None:
        """Finish what runs, drop what waits, end the threads."""
        for pool in (self._short, self._long):
            pool.shutdown(wait=True, cancel_futures=True)
