"""The process that `first_answer` starts. It imports what its contender needs, so nothing else may be imported here."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from q8core.bench.contender import OURS, STOCK, Contender

if TYPE_CHECKING:
    from q8core.engines import TokenBatch

_USE = ((1, 128), (8, 128))
"""Sequences and tokens of each, of the batches after the first answer."""


def main(request: dict[str, Any]) -> dict[str, float]:
    """Answer as the request says; return when the first logits were there, and the size of the process."""
    contender = _load(request)
    contender.bind(_batch(request, 1, 32))()
    at = time.monotonic()
    for shape in _USE:
        contender.bind(_batch(request, *shape))()
    return {"at": at, "process_rss": _resident_set()}


def _load(request: dict[str, Any]) -> Contender:
    name, folder, task, threads = request["engine"], Path(request["folder"]), request["task"], request["threads"]
    if name == STOCK:
        from q8core.bench.stock import load_stock

        return load_stock(folder, task)
    if name in OURS:
        from q8core.bench.contenders import load_contender
        from q8core.checkpoint import Checkpoint

        return load_contender(name, Checkpoint.open(folder), threads)
    from q8core.bench.peers.registry import load_peer

    return load_peer(name, folder, task, threads)


def _batch(request: dict[str, Any], sequences: int, length: int) -> TokenBatch:
    ids = np.random.default_rng(0).integers(request["vocabulary"], size=sequences * length)
    fields: dict[str, Any] = {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "lengths": (length,) * sequences}
    if request["engine"] in OURS:
        from q8core.engines import TokenBatch

        return TokenBatch(**fields)
    return cast("TokenBatch", SimpleNamespace(**fields))  # the class comes with all of our engines


def _resident_set() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmRSS")


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
