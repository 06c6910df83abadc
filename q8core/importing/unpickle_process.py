"""The process that reads pickled weights: one file in, its tensors as safetensors out.

A pickle is a program. These barriers protect the machine, from the inside out:

- ``torch.load(weights_only=True)``: an unpickler that builds tensors and plain containers, and refuses all else;
- no file or socket can be opened: the two files are opened before, and then the limit of descriptors is set to 0;
- no network: a network namespace of its own without an interface, if the kernel lets users make one. If it does not (as
  in containers with Docker's default profile), the answer says so, and only the limit of descriptors protects;
- no secrets: the parent gives it an environment without its own variables, and no descriptors;
- limits of memory, CPU time and written bytes, so that a decompression bomb ends this process and nothing else.

It is started by the path of this file and imports nothing of q8bert. Its answer is one line of JSON on stdout:
``{"network": null}``, or why there is a network; ``{"refused": REASON}`` for a refused file.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import pickle
import resource
import sys
from typing import IO, Any

NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000
"""CLONE_NEWUSER and CLONE_NEWNET of Linux's <sched.h>; with the former, the latter needs no privilege."""
REASON_LENGTH = 300


class RefusedError(Exception):
    """Raised for a file that has anything but tensors by name."""


def leave_network() -> str | None:
    """Move into a network namespace without interfaces; return why that was not possible, or None."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_USER | NEW_NETWORK) == 0:
        return None
    return os.strerror(ctypes.get_errno())


def limit(memory: int, seconds: int, written: int) -> None:
    """Limit this process: bytes of memory, CPU seconds, bytes of a written file; a crash leaves no core dump."""
    for kind, most in (
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, written),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def open_nothing_more() -> None:
    """Forbid opening files, sockets and pipes from now on; open ones stay open."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


def warm_up() -> None:
    """Load one file of each kind, so that torch's lazy imports happen while files can be opened."""
    import torch

    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64)
    tensors: dict[str, Any] = {str(kind): torch.zeros(2, dtype=kind) for kind in kinds}
    tensors["parameter"] = torch.nn.Parameter(torch.zeros(2))
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save(tensors, buffer, _use_new_zipfile_serialization=zipped)
        buffer.seek(0)
        serialized(read(buffer))


def read(file: IO[bytes]) -> dict[str, Any]:
    """Return a pickle's tensors by name.

    Raises:
        RefusedError: it has anything else, or is damaged.
    """
    import torch

    try:
        found: object = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises any kind of error on damaged files
        raise RefusedError(reason_of(error)) from error
    if not isinstance(found, dict) or not found:
        raise RefusedError(f"it holds {type(found).__name__}; tensors by name are expected")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise RefusedError(f"it holds {type(value).__name__} under {name!r}; tensors by name are expected")
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise RefusedError(f"{name} is sparse, quantized or without values")
    return found


def serialized(tensors: dict[str, Any]) -> bytes:
    """Return the tensors as safetensors, without shared storage; empties `tensors` to save memory."""
    from safetensors.torch import save

    own = {name: tensors.pop(name).detach().clone().contiguous() for name in list(tensors)}
    return save(own, {"format": "pt"})


def reason_of(error: Exception) -> str:
    """Return why the conversion stopped, without torch's advice to switch off its checks."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "allocate memory" in text:
        return "its tensors need more memory than weights of its size do"
    if isinstance(error, pickle.UnpicklingError):
        for start in ("Unsupported global", "Unsupported class", "Trying to "):
            if (begin := text.find(start)) >= 0:
                return f"loading it would run code or build objects: {first_sentence(text[begin:])}"
    return f"it cannot be converted: {first_sentence(text or type(error).__name__)}"


def first_sentence(text: str) -> str:
    """Return the beginning of a message."""
    return text.partition(". ")[0].partition(" by default")[0].rstrip(".")[:REASON_LENGTH]


def main(source: str, target: str, memory: int, seconds: int, written: int) -> dict[str, Any]:
    """Convert one file and return the answer."""
    with open(source, "rb") as pickled, open(target, "wb") as output:
        network = leave_network()
        limit(memory, seconds, written)
        warm_up()
        open_nothing_more()
        try:
            output.write(serialized(read(pickled)))
        except RefusedError as error:
            return {"refused": str(error)}
        except Exception as error:  # out of memory or disk space: the kind of error depends on where it happens
            return {"refused": reason_of(error)}
    return {"network": network}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))))
