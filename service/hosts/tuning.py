"""What a process that serves sets for all of its threads: how they share the GIL, and when garbage is collected.

By default the event loop may keep the GIL for 5 ms while the engine thread wants it: as long as a small batch takes,
and under load an engine that has finished one waits that long before it can begin the next.

A full collection looks at every object of the process with the interpreter locked. Modules and models are hundreds of
thousands of them, all there for good, and a thousand requests in a queue as many again: under load there was a pause of
half a second every few seconds. There is little to find: requests leave no cycles, closed connections small ones.
"""

from __future__ import annotations

import gc
import sys
import time

IDLE_S = 10.0
"""Between full collections while nothing is in flight, when they take some milliseconds."""
BUSY_S = 300.0
"""Between full collections whatever is in flight."""

_SWITCH_INTERVAL_S = 0.0002
_PYTHONS_OWN = gc.get_threshold()
_NEVER = 1_000_000  # collections of younger objects between two full ones


def tune_process() -> FullCollections:
    """Set the process up to serve; called by every host before it makes its application.

    Returns:
        What looks after full collections: to be taken over once all is loaded, told the time, and given back.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    return FullCollections()


class FullCollections:
    """Full collections of this process, at times that suit it instead of Python's."""

    def __init__(self) -> None:
        self._last: float | None = None  # while they are Python's

    def take_over(self) -> None:
        """Leave what exists by now out of all further collections, and Python's own full ones to `tick`.

        A model that is unloaded later is freed all the same: no reference leads from its engines back to themselves.
        """
        gc.freeze()
        gc.set_threshold(*_PYTHONS_OWN[:2], _NEVER)
        self._last = time.monotonic()

    def tick(self, idle: bool) -> None:
        """Collect if it is time, once taken over; `idle`: nobody waits for an answer."""
        if self._last is not None and time.monotonic() - self._last >= (IDLE_S if idle else BUSY_S):
            gc.collect()
            self._last = time.monotonic()

    def give_back(self) -> None:
        """Leave everything to Python again."""
        self._last = None
        gc.set_threshold(*_PYTHONS_OWN)
        gc.unfreeze()
