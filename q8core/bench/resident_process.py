"""The process that `resident` starts: load one engine, use it, print what it added as one line of JSON.

It then starts itself a second time, and waits with its engine loaded, so that the second process shares its pages.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from transformers import BertConfig

from q8core.bench.contender import CONTENDERS, STOCK, Contender
from q8core.bench.contenders import OurEngine, load_contender, load_named_engine
from q8core.bench.peers.registry import PEER_NAMES, load_peer
from q8core.bench.stock import load_stock
from q8core.bench.workloads import Shape
from q8core.checkpoint import Checkpoint
from q8core.engines.engine import EncoderEngine
from q8core.engines.memory.heap import release_freed_memory
from q8core.model.head import TaskKind

_USE = (Shape(1, 32), Shape(1, 128), Shape(8, 128))


def main(request: dict[str, Any]) -> dict[str, float]:
    """Measure as the request says."""
    torch.set_num_threads(request["threads"])
    folder = Path(request["folder"])
    _settle(request["engine"], Path(request["tiny"]), request["task"])
    base = _now()
    _reset_peak()
    begin = time.perf_counter()
    contender, engine = _load(request["engine"], folder, request)
    seconds = time.perf_counter() - begin
    # The operating system updates its peak late, so the current size may exceed it.
    peak = max(_peak(), _now().rss) - base.rss
    gc.collect()
    loaded = _now()
    vocabulary = BertConfig.from_pretrained(folder).vocab_size
    for shape in _USE:
        for _ in range(2):
            contender.bind(shape.batch(vocabulary))()
    used = _now()
    if request["second"]:
        return {
            "second_loaded_uss": loaded.uss - base.uss,
            "second_used_uss": used.uss - base.uss,
            "second_load_seconds": seconds,
        }
    return {
        "loaded_rss": loaded.rss - base.rss,
        "loaded_pss": loaded.pss - base.pss,
        "used_rss": used.rss - base.rss,
        "used_pss": used.pss - base.pss,
        "peak_rss": peak,
        "reported": engine.memory().total if engine else 0,
        "load_seconds": seconds,
        **_second_process(request),
    }


def _second_process(request: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, "-m", "q8core.bench.resident_process", json.dumps({**request, "second": True})]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)  # its error message is on stderr, which both processes share
    return json.loads(done.stdout.splitlines()[-1])


def _load(name: str, folder: Path, request: dict[str, Any]) -> tuple[Contender, EncoderEngine | None]:
    if name in PEER_NAMES:
        return load_peer(name, folder, request["task"], request["threads"]), None
    if name == STOCK:
        return load_stock(folder, request["task"]), None
    engine = load_named_engine(name, Checkpoint.open(folder), request["threads"])
    return OurEngine(engine), engine


def _settle(name: str, folder: Path, task: TaskKind) -> None:
    """Run a tiny model on each engine and on `name`, so that code loaded once per process does not count as memory."""
    checkpoint, threads = Checkpoint.open(folder), torch.get_num_threads()
    for each in CONTENDERS:
        load_contender(each, checkpoint, threads).bind(Shape(1, 8).batch(100))()
    if name in PEER_NAMES:
        load_peer(name, folder, task, threads).bind(Shape(1, 8).batch(100))()
    gc.collect()
    release_freed_memory()  # else an engine could reuse memory freed after imports, and look smaller than it is


class _Sizes(NamedTuple):
    """Bytes of this process: resident set, proportional set, unique set."""

    rss: int
    pss: int
    uss: int


def _now() -> _Sizes:
    """Return the current sizes (psutil reads smaps_rollup; private pages are the unique set)."""
    info = psutil.Process().memory_full_info()
    return _Sizes(info.rss, info.pss, info.uss)


def _reset_peak() -> None:
    """Reset the operating system's peak of this process (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak() -> int:
    """Return the highest resident set since the reset, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
