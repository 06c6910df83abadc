"""What a user of a contender pays besides time per text: how soon a fresh process answers, and how large it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from q8core.checkpoint import Checkpoint
from q8core.errors import EngineError
from q8core.model.head import TaskKind

_STARTS = 3


class FirstAnswer(NamedTuple):
    """Medians of some starts, with the files in the page cache.

    Attributes:
        seconds: from the start of the process to its first logits, those of one text of 32 tokens.
        process_rss: resident set of the whole process after some batches, in bytes.
    """

    seconds: float
    process_rss: int


def measure_first_answer(engine: str, folder: Path, task: TaskKind, threads: int) -> FirstAnswer:
    """Start a process that imports what `engine` needs and nothing else, loads it and answers.

    Args:
        engine: a contender's name, or a peer's; what it prepares or caches must be in the folder.
        folder: a checkpoint.
        task: classify or qa.
        threads: CPU threads of the engine.

    Raises:
        EngineError: if the process fails; has its last line of output.
    """
    vocabulary = Checkpoint.open(folder).config.spec.vocabulary
    request = {"engine": engine, "folder": str(folder), "task": task, "threads": threads, "vocabulary": vocabulary}
    command = [sys.executable, "-m", "q8core.bench.first_answer_process", json.dumps(request)]
    # torch's threads, of contenders that cannot be told otherwise
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    starts = [_start(engine, command, environment) for _ in range(_STARTS)]
    return FirstAnswer(median(each.seconds for each in starts), int(median(each.process_rss for each in starts)))


def _start(engine: str, command: list[str], environment: dict[str, str]) -> FirstAnswer:
    begin = time.monotonic()  # one clock for all processes of the system
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EngineError(f"starting a process with {engine} failed: {last}")
    answered = json.loads(done.stdout.splitlines()[-1])
    return FirstAnswer(answered["at"] - begin, answered["process_rss"])
