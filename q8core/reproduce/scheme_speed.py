"""Times and memory of all schemes of a task, from one run over the checkpoints of its first seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from q8core.bench.contender import Contender
from q8core.bench.contenders import OurEngine
from q8core.bench.environment import environment, usable_cpus
from q8core.bench.timing import take_turns
from q8core.bench.workloads import Shape
from q8core.checkpoint import Checkpoint
from q8core.checkpoint.config import read_config
from q8core.documents import read_json
from q8core.engines import build_engine, load_engine
from q8core.engines.choice.random_weights import RandomFloat
from q8core.errors import CheckpointError
from q8core.quant import Plan
from q8core.reproduce.record import FP32, RunRecord
from q8core.reproduce.reports import replace_file

SPEED_FILE = "speed.json"
REFERENCES = ("q8bert", FP32)
"""Whose times the others' are divided by."""
SHAPES = (Shape(1, 32), Shape(8, 128))
"""Alike for all tasks, so that their tables can be compared; one sentence, and a full batch."""
_ROUNDS = 11


@dataclass(frozen=True)
class Speed:
    """The measurements of a task.

    Attributes:
        threads: CPU threads.
        resident: scheme, or fp32 -> bytes of the loaded engine's weights and scales.
        ratios: shape -> scheme, or fp32 -> reference -> median over the rounds of its time divided by the reference's.
        document: all of it and the single times, as plain JSON values.
    """

    threads: int
    resident: Mapping[str, int]
    ratios: Mapping[str, Mapping[str, Mapping[str, float]]]
    document: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> Speed | None:
        """Read a task's measurements; None if there are none.

        Raises:
            CheckpointError: the file is damaged.
        """
        file = folder / SPEED_FILE
        if not file.is_file():
            return None
        document = read_json(file, CheckpointError)
        ratios: dict[str, dict[str, dict[str, float]]] = {}
        try:
            for timing in document["timings"]:
                against = {name: ratio["times_its_time"] for name, ratio in timing["ratios"].items()}
                ratios.setdefault(timing["workload"], {})[timing["engine"]] = against
            return cls(document["threads"], document["resident_bytes"], ratios, document)
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{file} is damaged ({error}); delete it to measure again") from error


def measure_speed(records: Sequence[RunRecord], folder: Path) -> None:
    """Time the checkpoints of one seed in turns with the float model, and write the file of the task.

    Args:
        records: the finished records of schemes, of one task and seed; at least one.
        folder: the task's folder.
    """
    opened = {record.methods[0]: Checkpoint.open(record.checkpoint) for record in records}
    threads, config = usable_cpus(), read_config(records[0].fine_tuned)
    spec, plan = config.spec, Plan.of(config.spec, config.head(next(iter(opened.values())).task))
    # which float weights does not matter to a time, and the fine-tuned ones may be gone
    engines = {FP32: build_engine(plan, RandomFloat(plan), threads=threads)}
    for name, checkpoint in opened.items():
        engines[name] = load_engine(checkpoint, "int8" if checkpoint.manifest else "fp32", threads=threads)
    contenders: dict[str, Contender] = {name: OurEngine(engine) for name, engine in engines.items()}
    timings: list[dict[str, object]] = []
    for shape in SHAPES:
        workload = Shape(shape.sequences, min(shape.length, spec.positions)).workload()
        found = take_turns(folder.name, threads, contenders, workload, spec.vocabulary, _ROUNDS)
        references = {one.engine: (one.engine, one.milliseconds) for one in found if one.engine in REFERENCES}
        timings += [replace(one, references=references).to_dict() for one in found]
    memory = {name: engine.memory() for name, engine in engines.items()}
    document = {
        "environment": environment(),
        "threads": threads,
        "rounds": _ROUNDS,
        "kernels": {name: engine.kernel for name, engine in engines.items()},
        "resident_bytes": {name: used.weights + used.scales for name, used in memory.items()},
        "timings": timings,
    }
    replace_file(folder / SPEED_FILE, json.dumps(document, indent=1) + "\n")
