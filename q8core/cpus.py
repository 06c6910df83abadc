"""The number of CPUs that this process may really use."""

from __future__ import annotations

import math
from pathlib import Path

import torch

_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cpus(quota_file: Path = _CGROUP_QUOTA) -> int:
    """Return torch's own choice, which knows affinity and OMP_NUM_THREADS, limited by the container's CPU quota.

    Torch does not know the quota: under ``docker run --cpus 2`` on a large machine it would start a thread per core,
    and these would be throttled most of the time.
    """
    threads = torch.get_num_threads()
    try:
        quota, period = quota_file.read_text().split()
    except (OSError, ValueError):  # no cgroup v2 here
        return threads
    return threads if quota == "max" else max(1, min(threads, math.ceil(int(quota) / int(period))))
