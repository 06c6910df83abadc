"""How long OpenMP threads spin while they wait for each other.

GNU's OpenMP runtime, which the native kernel shares with torch, lets a waiting thread spin for milliseconds before it
sleeps. With a CPU for every thread that saves a little. With one process too many, which is usual in containers and on
shared machines, the thread that spins occupies the CPU that the thread it waits for needs, layer by layer: a few
milliseconds become hundreds.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

SPIN_COUNT = "1000"
"""Iterations that a thread spins before it sleeps; the runtime's own default is 300,000."""


def spin_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Make waiting threads sleep soon, unless the user has configured how they wait.

    The runtime reads this when it is loaded, so it has to be called before a kernel is, or torch is imported.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
