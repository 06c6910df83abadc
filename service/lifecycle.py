"""The state of the process, readable from every thread.

``starting -> warming -> ready -> draining -> stopped``, and ``failed`` from any of them.
"""

from __future__ import annotations

import threading
from enum import Enum


class State(Enum):
    """Only ``ready`` takes requests."""

    STARTING = "starting"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


_ORDER = [State.STARTING, State.WARMING, State.READY, State.DRAINING, State.STOPPED]


class Lifecycle:
    """The state, and the error behind ``failed``."""

    def __init__(self) -> None:
        self._state = State.STARTING
        self._failure: BaseException | None = None
        self._changed = threading.Condition()

    @property
    def state(self) -> State:
        """The current state."""
        return self._state

    @property
    def failure(self) -> BaseException | None:
        """The error that led to ``failed``, or None."""
        return self._failure

    def advance(self, state: State) -> bool:
        """Move forward; return False, without effect, for a step back (a drain wins over a finished warm-up)."""
        with self._changed:
            if self._state is State.FAILED or _ORDER.index(state) <= _ORDER.index(self._state):
                return False
            self._set(state)
            return True

    def fail(self, error: BaseException) -> None:
        """Record a fatal error; the first one is kept."""
        with self._changed:
            if self._state in (State.FAILED, State.STOPPED):
                return
            self._failure = error
            self._set(State.FAILED)

    def wait_until_settled(self, timeout: float | None = None) -> State:
        """Wait until start-up has succeeded or failed."""
        with self._changed:
            self._changed.wait_for(lambda: self._state not in (State.STARTING, State.WARMING), timeout)
            return self._state

    def _set(self, state: State) -> None:
        self._state = state
        self._changed.notify_all()
