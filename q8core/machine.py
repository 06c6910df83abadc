"""Facts about the machine that decide how fast kernels are."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

from q8core.native.library import ISA_VARIABLE

VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "GOMP_SPINCOUNT",
    "GOMP_CPU_AFFINITY",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_CPU_ISA_HINTS",
    "FBGEMM_ENABLE_INSTRUCTIONS",
    "MKL_ENABLE_INSTRUCTIONS",
    ISA_VARIABLE,
    "LD_PRELOAD",
)
"""Environment variables that change which code runs, or how threads wait."""


def usable_cpus() -> int:
    """Return the CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def cpu() -> tuple[str, frozenset[str]]:
    """Return the CPU's name and flags from Linux's /proc; on other systems what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name") or platform.processor() or platform.machine()
    return name, frozenset((facts.get("flags") or facts.get("Features") or "").split())


def variables() -> dict[str, str]:
    """Return the variables among `VARIABLES` that are set."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}
