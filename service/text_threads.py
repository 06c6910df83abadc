"""The threads that turn texts into tokens and logits into answers, so that the event loop never does.

Long texts have a thread of their own: cutting a book into windows takes a second, and a sentence that came after it
shall not wait for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

LONG_TEXT = 20_000
"""Characters of one request from which on it goes to the thread for long texts: some milliseconds of tokenizing."""


class TextThreads:
    """Two threads for requests of few characters, one for those of many."""

    def __init__(self) -> None:
        self._short = ThreadPoolExecutor(max_workers=2, thread_name_prefix="q8bert-text")
        self._long = ThreadPoolExecutor(max_workers=1, thread_name_prefix="q8bert-long-text")

    async def run(self, work: Callable[[], T], characters: int) -> T:
        """Run a function that takes no longer than this many characters make it take."""
        pool = self._short if characters < LONG_TEXT else self._long
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    def close(self) -> None:
        """Finish what runs, drop what waits, end the threads."""
        for pool in (self._short, self._long):
            pool.shutdown(wait=True, cancel_futures=True)
