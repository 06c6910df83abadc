"""A process that loads a checkpoint on a word from its parent, tells what it found, and keeps it until another word.

python -m tests.engines.loading_process TINY CHECKPOINT
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import numpy as np
import psutil

from q8core.checkpoint import Checkpoint
from q8core.engines import TokenBatch, load_engine
from q8core.engines.engine import EncoderEngine
from q8core.engines.memory.heap import release_freed_memory


def run(folder: Path) -> tuple[EncoderEngine, float]:
    """Load the native kernel and compute one batch; the sum of the logits stands for them."""
    engine = load_engine(Checkpoint.open(folder), "int8", "native", threads=1)
    ids = np.arange(24) % 50
    return engine, float(engine.infer(TokenBatch(ids, ids % 2, (5, 19))).astype(np.float64).sum())


def unique_bytes() -> int:
    gc.collect()
    release_freed_memory()
    return psutil.Process().memory_full_info().uss


def main(tiny: Path, folder: Path) -> None:
    run(tiny)  # code and buffers that a process has once are there already
    print("ready", flush=True)
    sys.stdin.readline()
    before = unique_bytes()
    engine, logits = run(folder)
    facts = engine.describe()
    found = {
        "memory": facts["weights_memory"],
        "note": facts["weights_note"],
        "weights": engine.memory().weights,
        "logits": logits,
        "added": unique_bytes() - before,
    }
    print(json.dumps(found), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
