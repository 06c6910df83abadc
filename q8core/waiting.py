"""How long OpenMP threads spin while they wait for each other.

GNU's OpenMP runtime, which comes with torch, lets a waiting thread spin for milliseconds before it sleeps. With a CPU
for every thread that saves a little time. With one process too many, which is usual in containers and on shared
machines, a spinning thread takes the CPU from the very thread that it waits for, in every layer: a few milliseconds
become hundreds.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

SPIN_COUNT = "1000"
"""Iterations that a thread spins before it sleeps; the runtime's own default is 300,000."""


def spin_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Make waiting threads sleep soon, unless the user has configured how they wait.

    The runtime reads the variable when torch loads it, so this must be called before torch is imported.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
