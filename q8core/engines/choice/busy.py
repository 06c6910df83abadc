"""Whether other processes computed while something was timed, from Linux's /proc/stat."""

from __future__ import annotations

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")
_IDLE = (3, 4)
"""Columns of /proc/stat: idle, and waiting for a disk."""
_GUEST = 8
"""From this column on time is counted a second time."""


class ForeignTime:
    """The CPU time that others took of this process's CPUs since this was made.

    Others are all other processes, and other virtual machines (stolen time).
    """

    def __init__(self) -> None:
        self._begin, self._own, self._busy = time.monotonic(), time.process_time(), _busy_seconds()

    def share(self) -> float:
        """Return it as a share of all time of these CPUs, 0 to 1; 0 where the system does not tell."""
        elapsed, own = time.monotonic() - self._begin, time.process_time() - self._own
        found = _busy_seconds()
        if self._busy is None or found is None or not elapsed:
            return 0.0
        (before, cpus), (after, _) = self._busy, found
        return min(1.0, max(0.0, after - before - own) / (elapsed * cpus))


def _busy_seconds() -> tuple[float, int] | None:
    """Return the busy time of this process's CPUs in seconds, all together, and how many they are."""
    try:
        lines = [line.split() for line in _STAT.read_text(encoding="ascii").splitlines()]
        mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    except (OSError, AttributeError):  # not Linux
        return None
    rows = [[int(ticks) for ticks in line[1 : _GUEST + 1]] for line in lines if line and line[0] in mine]
    ticks = sum(sum(row) - sum(row[column] for column in _IDLE) for row in rows)
    return (ticks / os.sysconf("SC_CLK_TCK"), len(rows)) if rows else None
