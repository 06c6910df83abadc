"""How much memory an engine adds to a process, how large the whole process is, and how soon it answers.

Each is measured in fresh processes, by the operating system's counters.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from q8core.bench.contender import FEW_BITS, STOCK
from q8core.bench.first_answer import measure_first_answer
from q8core.bench.folder import prepare_few_bits, random_folder
from q8core.bench.peers.registry import PEER_NAMES, prepare_peer
from q8core.checkpoint.manifest import FLOAT_FILE, INT8_FILE
from q8core.errors import EngineError
from q8core.model.head import TaskKind

_TINY = {"vocab_size": 100, "num_hidden_layers": 1, "hidden_size": 48, "intermediate_size": 64}
"""The model that runs before the measurement."""


@dataclass(frozen=True)
class Resident:
    """Bytes that one engine added to a fresh process, without those of imports and libraries' code, unless said.

    A second process, with the same engine of the same checkpoint, is measured while the first one runs: it adds its
    unique set, the pages that it shares with no other process.

    Attributes:
        loaded_rss: resident set after loading.
        loaded_pss: the same, with shared pages divided among their processes.
        used_rss: resident set after some batches.
        used_pss: the same, with shared pages divided among their processes.
        peak_rss: the highest resident set while loading.
        reported: the engine's own `memory()` after use, 0 for stock transformers.
        load_seconds: time to verify and load.
        second_loaded_uss: unique set of the second process after loading.
        second_used_uss: the same after some batches.
        second_load_seconds: time to verify and load in the second process, which finds the first one's cache.
        first_answer_seconds: from the start of a process that imports only what the engine needs to its first logits.
        process_rss: resident set of that whole process after some batches, imports and libraries' code included.
    """

    engine: str
    loaded_rss: int
    loaded_pss: int
    used_rss: int
    used_pss: int
    peak_rss: int
    reported: int
    load_seconds: float
    second_loaded_uss: int
    second_used_uss: int
    second_load_seconds: float
    first_answer_seconds: float
    process_rss: int

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values, with the peak divided by the resident size."""
        return {**asdict(self), "peak_over_loaded": self.peak_rss / max(self.loaded_rss, 1)}


def measure_resident(engine: str, folder: Path, task: TaskKind, threads: int) -> Resident:
    """Load and use `engine` in a new process, then in a second one while the first runs; return what they added.

    Args:
        engine: a contender's name, or a peer's.
        folder: a checkpoint; our engines hash and check it as serving does.
        task: classify or qa.
        threads: CPU threads of the engine.

    Raises:
        EngineError: if the process fails; has its last line of output.
    """
    command = [sys.executable, "-m", "q8core.bench.resident_process"]
    with random_folder("minilm-l6", task, **_TINY) as tiny:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}  # with the cache of this random folder
        if engine in PEER_NAMES:
            for each in (tiny, folder):
                prepare_peer(engine, each, task)
        elif engine in FEW_BITS:
            prepare_few_bits(engine, folder)
        request = {"engine": engine, "folder": str(folder), "tiny": str(tiny), "task": task, "threads": threads}
        command.append(json.dumps({**request, "second": False}))
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise EngineError(f"measuring the memory of {engine} failed: {last}")
        whole = measure_first_answer(engine, folder, task, threads)  # finds what was prepared and cached above
    added = json.loads(done.stdout.splitlines()[-1])
    return Resident(engine, **added, first_answer_seconds=whole.seconds, process_rss=whole.process_rss)


def measurable(engines: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    """Return the engines that `folder` has weights for; stock transformers needs float weights."""
    has_float, has_int8 = (folder / FLOAT_FILE).is_file(), (folder / INT8_FILE).is_file()
    return tuple(
        name
        for name in engines
        if (has_float if name == STOCK else has_int8 if name.startswith("int8") else has_float or has_int8)
    )
