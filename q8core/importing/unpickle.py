"""Pickled weights as safetensors, read by a process of their own: see :mod:`q8core.importing.unpickle_process`."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import cast

from q8core.checkpoint.tensors import give_ordinary_permissions
from q8core.errors import CheckpointError
from q8core.say_once import warn_once

log = logging.getLogger(__name__)

PROCESS = Path(__file__).with_name("unpickle_process.py")
_GIB = 2**30
_TORCH_BYTES = 2 * _GIB
"""Memory of torch itself, estimated generously."""
_COPIES = 4
"""Copies in memory: the file's tensors, clones out of shared storages, and the bytes to write."""
_SHARED = 3
"""Factor of the written size: tied tensors are stored once in a pickle and several times in safetensors."""
_SECONDS, _BYTES_PER_SECOND = 120, 10_000_000
"""Time to start and import torch, and the speed of the slowest disks."""


def unpickle(file: Path, target: Path) -> None:
    """Write the tensors of a pickle as safetensors, with the same names, dtypes and values.

    Raises:
        CheckpointError: it has more than tensors by name, is damaged, or its process was stopped.
    """
    size = file.stat().st_size
    seconds = _SECONDS + size // _BYTES_PER_SECOND
    limits = (_TORCH_BYTES + _COPIES * size, seconds, _SHARED * size + 2**26)
    try:
        ended = subprocess.run(
            [sys.executable, "-P", str(PROCESS), str(file.resolve()), str(target.resolve()), *map(str, limits)],
            env=_environment(target.parent),
            cwd=target.parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(f"{file} is refused: reading it took longer than {seconds} s") from error
    answer = _answer(file, ended)
    if "refused" in answer:
        raise CheckpointError(f"{file} is refused: {answer['refused']}")
    if answer.get("network"):
        warn_once(
            log,
            "pickled weights are read in a process with a network, because none without could be made here (%s); it "
            "can open no socket while it reads, and loads tensors only",
            str(answer["network"]),
        )
    give_ordinary_permissions(target)


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment of the process: paths of modules and libraries, and a folder of its own."""
    libraries = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PATH": os.defpath,
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "LC_ALL": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        **libraries,
    }


def _answer(file: Path, ended: subprocess.CompletedProcess[bytes]) -> dict[str, object]:
    """Return the answer of the process.

    Raises:
        CheckpointError: it was stopped, or failed without a reason for the user.
    """
    if ended.returncode < 0:
        name = signal.Signals(-ended.returncode).name
        raise CheckpointError(
            f"{file} is refused: the process that read it was stopped by {name}; the file is damaged, or needs more "
            "memory or time than weights of its size do"
        )
    lines = ended.stdout.decode(errors="replace").splitlines()
    try:
        answer: object = json.loads(lines[-1]) if ended.returncode == 0 and lines else None
    except json.JSONDecodeError:
        answer = None
    if not isinstance(answer, dict):
        last = (ended.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise CheckpointError(f"{file} is refused: the process that read it failed with {ended.returncode}: {last}")
    return cast("dict[str, object]", answer)
