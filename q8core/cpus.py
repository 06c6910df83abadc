"""The number of CPUs that this process may really use."""

from __future__ import annotations

import math
import os
from pathlib import Path

from q8core.errors import InputError

_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_TOPOLOGY = Path("/sys/devices/system/cpu")
_THREADS_VARIABLE = "OMP_NUM_THREADS"


def available_cpus(quota_file: Path = _CGROUP_QUOTA, topology: Path = _TOPOLOGY) -> int:
    """OMP_NUM_THREADS, or a thread for each core that this process may use, bounded by the container's CPU quota.

    OpenMP does not know the quota: under ``docker run --cpus 2`` on a large machine it would start a thread for every
    CPU, and they would spend most of their time throttled. Two threads of one core share its arithmetic units, so that
    a second one gains nothing; torch leaves it out, too.

    Raises:
        InputError: OMP_NUM_THREADS is not a number of threads.
    """
    threads = _wanted_threads() or _usable_cores(topology)
    try:
        quota, period = quota_file.read_text().split()
    except (OSError, ValueError):  # no cgroup v2 here
        return threads
    return threads if quota == "max" else max(1, min(threads, math.ceil(int(quota) / int(period))))


def _usable_cpus() -> frozenset[int]:
    """Return the CPUs that this process may run on, as the kernel numbers them."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _usable_cores(topology: Path) -> int:
    """Return how many cores these CPUs are of; where the kernel does not tell, each is one."""
    return len({_core(topology / f"cpu{cpu}" / "topology") or str(cpu) for cpu in _usable_cpus()})


def _core(folder: Path) -> str | None:
    """Return the CPUs that a CPU shares its core with, itself among them."""
    try:
        return (folder / "thread_siblings_list").read_text().strip()
    except OSError:
        return None


def _wanted_threads() -> int | None:
    """Return what OMP_NUM_THREADS says, the first of its numbers if it has one for each level; None where unset."""
    given = os.environ.get(_THREADS_VARIABLE, "").strip()
    if not given:
        return None
    first = given.partition(",")[0].strip()
    if not (first.isdecimal() and int(first)):
        raise InputError(f"{_THREADS_VARIABLE} is {given!r}; expected a number of threads, at least 1")
    return int(first)
