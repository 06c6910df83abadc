"""A run's result file: what was asked for and the results; decides whether a later command may go on from it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from q8core.documents import read_json
from q8core.errors import CheckpointError, InputError
from q8core.reproduce.methods import BASELINES
from q8core.training.config import TrainConfig

RESULT_FILE = "result.json"
FP32, QAT = "fp32", "qat"
METHODS = (FP32, *BASELINES, QAT)
"""The methods, in the order of a run."""

_CONFIGS = ("fp32", "qat")


@dataclass
class RunRecord:
    """One task and seed.

    Attributes:
        folder: the folder of the run's files, such as ``result.json``.
        task: the task's name.
        seed: seed of data order, new head and calibration.
        identity: everything that decides the scores: base, scheme, data, both recipes and whether the fine-tuned model
            is the teacher, as JSON values.
        scores: method -> metric -> score on the dev set.
        how: method -> how its scores were computed.
        seconds: method -> time spent, training included.
        errors: method -> why it has no scores.
        versions: package -> version.
    """

    folder: Path
    task: str
    seed: int
    identity: dict[str, Any]
    scores: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    how: dict[str, str] = field(default_factory=dict[str, str])
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    errors: dict[str, str] = field(default_factory=dict[str, str])
    versions: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def complete(self) -> bool:
        """Whether every method has its scores."""
        return all(name in self.scores for name in METHODS)

    @property
    def status(self) -> str:
        """``finished``, ``failed`` or ``unfinished``."""
        return "finished" if self.complete else "failed" if self.errors else "unfinished"

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain JSON values, without the folder."""
        values = {name: value for name, value in asdict(self).items() if name != "folder"}
        return {"status": self.status, **values}

    def save(self) -> None:
        """Replace ``result.json`` atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f"{RESULT_FILE}.part"
        part.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        os.replace(part, self.folder / RESULT_FILE)

    @classmethod
    def load(cls, folder: Path) -> RunRecord | None:
        """Read the folder's ``result.json``; return None if there is none.

        Raises:
            CheckpointError: it is damaged.
        """
        file = folder / RESULT_FILE
        if not file.is_file():
            return None
        try:
            values = read_json(file, CheckpointError)
            values.pop("status")
            return cls(folder=folder, **values)
        except (CheckpointError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{file} is damaged ({error}); delete its folder to run it again") from error


def load_records(runs: Path) -> list[RunRecord]:
    """Return all records below a folder of runs, sorted by task and seed."""
    records = [RunRecord.load(file.parent) for file in sorted(runs.glob(f"*/*/{RESULT_FILE}"))]
    return sorted((record for record in records if record is not None), key=lambda record: (record.task, record.seed))


def check_same(record: RunRecord, identity: Mapping[str, Any]) -> None:
    """Check that a run was made with the same settings, before going on from it or counting it.

    Raises:
        InputError: settings differ; names every difference.
    """
    old, new = dict(_flat(_completed(record.identity))), dict(_flat(_completed(identity)))
    changed = [
        f"{name} was {old.get(name, 'not known')!r} and is {new.get(name, 'not known')!r}"
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    ]
    if changed:
        raise InputError(
            f"{record.folder} holds a run with other settings ({'; '.join(changed)}): undo the change, delete that "
            "folder to run it again, or choose another --output"
        )


def _completed(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Add defaults of settings that did not exist when the run was made; drop those that change no score."""
    defaults = TrainConfig().to_dict()
    seedless = {name: {**defaults, **identity.get(name, {})} for name in _CONFIGS}
    for values in seedless.values():
        values.pop("seed")  # the run has its own
    base = {name: value for name, value in identity.get("base", {}).items() if name != "name"}  # compare by digest
    return {"teacher": False, **identity, "base": base, **seedless}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in json.loads(json.dumps(values)).items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
