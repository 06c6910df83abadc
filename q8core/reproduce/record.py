"""A run's result file: what was asked for and the results; decides whether a later command may go on from it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from q8core.checkpoint.manifest import FLOAT_FILE
from q8core.documents import read_json
from q8core.errors import CheckpointError, InputError
from q8core.reproduce.methods import BASELINES
from q8core.training.config import TrainConfig

RESULT_FILE = "result.json"
FP32, QAT = "fp32", "qat"
METHODS = (FP32, *BASELINES, QAT)
"""The methods of the paper's table, in the order of a run."""
SCHEMES_FOLDER = "schemes"

_CONFIGS = ("fp32", "qat")
_FLOAT_PARTS = ("base", "data", "fp32")


@dataclass
class RunRecord:
    """One task and seed: of the paper's table, of a fine-tuned model alone, or of one scheme.

    The record of a scheme lies in `schemes/NAME` below that of its fine-tuned model, beside the scheme's checkpoint.

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
        methods: what a complete run has scores of; the method of a scheme has its name.
        file_bytes: method -> size of the file of its weights; that of a scheme has fp32's too.
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
    methods: tuple[str, ...] = METHODS
    file_bytes: dict[str, int] = field(default_factory=dict[str, int])

    def __post_init__(self) -> None:
        self.methods = tuple(self.methods)  # a list in JSON

    @property
    def of_scheme(self) -> bool:
        """Whether this is the record of one scheme."""
        return FP32 not in self.methods

    @property
    def fine_tuned(self) -> Path:
        """The folder of the fine-tuned model."""
        return (self.folder.parents[1] if self.of_scheme else self.folder) / "fp32"

    @property
    def checkpoint(self) -> Path:
        """The folder of the int8 checkpoint."""
        return self.folder if self.of_scheme else self.folder / "qat"

    @property
    def weights(self) -> Path:
        """The float weights from which others train: those of the fine-tuned model, or of the scheme's."""
        return (self.checkpoint if self.of_scheme else self.fine_tuned) / FLOAT_FILE

    @property
    def complete(self) -> bool:
        """Whether every method has its scores."""
        return all(name in self.scores for name in self.methods)

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
    """Return all records below a folder of runs except those of schemes, sorted by task and seed."""
    return _load(runs, f"*/*/{RESULT_FILE}")


def load_scheme_records(runs: Path) -> list[RunRecord]:
    """Return the records of schemes below a folder of runs, sorted by task and seed."""
    return _load(runs, f"*/*/{SCHEMES_FOLDER}/*/{RESULT_FILE}")


def _load(runs: Path, pattern: str) -> list[RunRecord]:
    records = [RunRecord.load(file.parent) for file in sorted(runs.glob(pattern))]
    return sorted((record for record in records if record is not None), key=lambda record: (record.task, record.seed))


def fine_tuning(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a run's identity on which its fine-tuned model depends."""
    return {name: identity[name] for name in _FLOAT_PARTS if name in identity}


def check_same(record: RunRecord, identity: Mapping[str, Any]) -> None:
    """Check that a run was made with the same settings, before going on from it or counting it.

    Of a run that only fine-tuned, only what the fine-tuned model depends on is compared.

    Raises:
        InputError: settings differ; names every difference.
    """
    if record.methods == (FP32,):
        identity = fine_tuning(identity)
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
    after = {"after": _completed(identity["after"])} if identity.get("after") else {}
    return {"teacher": False, **identity, "base": base, **seedless, **after}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in json.loads(json.dumps(values)).items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
