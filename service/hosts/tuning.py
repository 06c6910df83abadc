"""Process-wide settings of a serving process: the GIL's switch interval, and when garbage is collected.

By default the event loop may keep the GIL for 5 ms while the engine thread waits for it. A small batch takes no longer
than that, so under load the engine would wait as long as it computes.

A full garbage collection visits every object of the process while it holds the GIL. Modules and models are hundreds of
thousands of permanent objects, and a thousand queued requests are as many again: under load there was a pause of half a
second every few seconds. There is little to collect: requests leave no reference cycles, closed connections small ones.
"""

from __future__ import annotations

import gc
import sys
import time

IDLE_S = 10.0
"""Seconds between full collections while nothing is in flight, when one takes some milliseconds."""
BUSY_S = 300.0
"""Seconds between full collections while requests are in flight."""

_SWITCH_INTERVAL_S = 0.0002
_PYTHONS_OWN = gc.get_threshold()
_NEVER = 1_000_000  # collections of younger objects between two full ones


def start_without_collections() -> None:
    """Collect no garbage until `FullCollections.take_over`: importing and loading make little, and looks for it add up.

    Call it before the imports that serving needs.
    """
    gc.disable()


def tune_process() -> FullCollections:
    """Set the process up to serve; every host calls this before it builds its application.

    Returns:
        The control of full collections: call `take_over` once everything is loaded, then `tick`, and `give_back`.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    return FullCollections()


class FullCollections:
    """Decides when this process runs full collections, in place of Python."""

    def __init__(self) -> None:
        self._last: float | None = None  # None while Python decides

    def take_over(self) -> None:
        """Exclude all existing objects from further collections, and leave full ones to `tick`.

        A model that is unloaded later is freed nevertheless: its engines are in no reference cycle.
        """
        gc.freeze()
        gc.enable()
        gc.set_threshold(*_PYTHONS_OWN[:2], _NEVER)
        self._last = time.monotonic()

    def tick(self, idle: bool) -> None:
        """Collect if it is time and `take_over` was called; `idle`: no request is in flight."""
        if self._last is not None and time.monotonic() - self._last >= (IDLE_S if idle else BUSY_S):
            gc.collect()
            self._last = time.monotonic()

    def give_back(self) -> None:
        """Let Python decide again."""
        self._last = None
        gc.set_threshold(*_PYTHONS_OWN)
        gc.unfreeze()
