"""The OpenMP runtime: one for the native library and for torch, whether that is imported before, later or never.

Two runtimes in a process would each keep a team of threads, and these would fight for the CPUs. So the file that torch
brings is loaded, where torch is installed; a later import of torch finds it loaded.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from q8core.errors import EngineError

_NAME = "libgomp.so.1"


@cache
def load_openmp() -> Any:
    """Return the runtime, its symbols visible to libraries that are loaded after it.

    Raises:
        EngineError: there is none.
    """
    file = next(iter(_torchs_own()), _NAME)
    try:
        return ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise EngineError(
            f"the native kernel needs GNU's OpenMP runtime, which cannot be loaded: {error} (Debian: apt install "
            "libgomp1)"
        ) from error


def runtime_threads() -> int:
    """Return how many threads the runtime uses on the calling thread: OMP_NUM_THREADS, or a thread for each CPU.

    Once torch is imported and has computed on this thread, it is torch's setting.
    """
    return int(load_openmp().omp_get_max_threads())


def _torchs_own() -> list[Path]:
    """Return the runtime's file among torch's libraries; this imports nothing."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        return []
    package = Path(found.origin).parent
    folders = (package / "lib", package.with_name("torch.libs"))
    return [file for folder in folders for file in sorted(folder.glob("libgomp*.so*"))]
