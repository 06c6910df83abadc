"""The process that `resident` starts: load one engine, use it, print what it added as one line of JSON."""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import BertConfig

from q8core.bench.contenders import CONTENDERS, ENGINES, Contender, OurEngine, load_contender, load_engine_files
from q8core.bench.peers.registry import PEER_NAMES, load_peer
from q8core.bench.workloads import Shape
from q8core.checkpoint import Checkpoint
from q8core.engines import load_engine
from q8core.engines.bert import BertEngine
from q8core.engines.heap import release_freed_memory
from q8core.tasks.task import TaskKind

_USE = (Shape(1, 32), Shape(1, 128), Shape(8, 128))


def main(request: dict[str, Any]) -> dict[str, float]:
    """Measure as the request says."""
    torch.set_num_threads(request["threads"])
    folder = Path(request["folder"])
    _settle(request["engine"], Path(request["tiny"]), request["task"])
    base_rss, base_pss = _now()
    _reset_peak()
    begin = time.perf_counter()
    contender, engine = _load(request["engine"], folder, request)
    seconds = time.perf_counter() - begin
    # The kernel brings its account of the peak up to date late, so what is there now may exceed it.
    peak = max(_peak(), _now()[0]) - base_rss
    gc.collect()
    loaded_rss, loaded_pss = _now()
    vocabulary = BertConfig.from_pretrained(folder).vocab_size
    for shape in _USE:
        for _ in range(2):
            contender.bind(shape.batch(vocabulary))()
    used_rss, used_pss = _now()
    return {
        "loaded_rss": loaded_rss - base_rss,
        "loaded_pss": loaded_pss - base_pss,
        "used_rss": used_rss - base_rss,
        "used_pss": used_pss - base_pss,
        "peak_rss": peak,
        "reported": engine.memory().total if engine else 0,
        "load_seconds": seconds,
    }


def _load(name: str, folder: Path, request: dict[str, Any]) -> tuple[Contender, BertEngine | None]:
    if name in PEER_NAMES:
        return load_peer(name, folder, request["task"], request["threads"]), None
    if name not in ENGINES:
        return load_contender(name, folder, request["task"], request["threads"]), None
    if not request["verified"]:
        engine = load_engine_files(name, folder, request["task"], request["threads"])
    else:
        backend, _, kernel = name.partition("-")
        engine = load_engine(Checkpoint.open(folder), backend, kernel or "auto", request["threads"])
    return OurEngine(engine), engine


def _settle(name: str, folder: Path, task: TaskKind) -> None:
    """Run a tiny model on each engine and on `name`: code that is loaded once per process is not counted as memory."""
    for each in dict.fromkeys((*CONTENDERS, name)):
        load = load_peer if each in PEER_NAMES else load_contender
        load(each, folder, task, torch.get_num_threads()).bind(Shape(1, 8).batch(100))()
    gc.collect()
    release_freed_memory()  # or an engine could grow into what the imports left, and look smaller than it is


def _now() -> tuple[int, int]:
    """Return (rss, pss) in bytes."""
    info = psutil.Process().memory_full_info()
    return info.rss, info.pss


def _reset_peak() -> None:
    """Make the kernel forget the peak so far (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak() -> int:
    """Return the highest resident set since the reset, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
