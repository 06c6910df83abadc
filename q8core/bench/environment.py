"""The machine and versions of a measurement, without which its numbers mean nothing."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

import psutil
import torch

from q8core.machine import cpu, usable_cpus, variables

__all__ = ["environment", "usable_cpus"]

_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")
"""CPU flags that decide how fast (and whether correctly) int8 products are summed."""


def environment() -> dict[str, object]:
    """Return CPU model and flags, memory, versions and the settings that change kernels, as plain JSON values."""
    model, flags = cpu()
    return {
        "cpu": model,
        "cpu_flags": [flag for flag in _FLAGS if flag in flags],
        "cpus": usable_cpus(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "transformers": version("transformers"),
        "variables": variables(),
    }
