"""What has been measured so far, in a JSON file: an interrupted command goes on from it, another budget reads it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np

from q8core.arrays import Array
from q8core.documents import read_json, validated
from q8core.errors import CheckpointError, InputError

STATE_FILE = "sensitivity_state.json"
LEAST_PROBES = 4
"""Of each batch, before their spread is believed."""


@dataclass(frozen=True)
class Estimate:
    """A mean over samples, and its standard error."""

    mean: float
    error: float


@dataclass
class Measured:
    """Samples of traces and eigenvalues; each depends on the identity and its own number alone.

    Attributes:
        identity: everything that a sample depends on, as JSON values.
        matrices: the paths of the matrices.
        batches: the indices of the examples of each batch.
        samples: of each batch its probes, each with a sample for every matrix.
        eigenvalues: of each random subset, the top eigenvalue of each layer.
        seconds: time spent.
    """

    identity: dict[str, Any]
    matrices: list[str]
    batches: list[list[int]]
    samples: list[list[list[float]]]
    eigenvalues: list[list[float]] = field(default_factory=list[list[float]])
    seconds: float = 0.0

    @classmethod
    def empty(cls, identity: dict[str, Any], matrices: list[str], batches: list[list[int]]) -> Measured:
        """Return a record without samples."""
        return cls(identity, matrices, batches, [[] for _ in batches])

    @property
    def probes(self) -> int:
        """How many probes all batches have had together."""
        return sum(map(len, self.samples))

    def next_batch(self) -> int:
        """Return the batch whose next probe lowers the variance of all traces most (Neyman, 1934)."""
        counts = [len(probes) for probes in self.samples]
        if min(counts) < LEAST_PROBES:
            return counts.index(min(counts))
        gains = self._squared_errors().sum(axis=1) / (np.array(counts) + 1)
        return int(gains.argmax())

    def traces(self) -> dict[str, Estimate]:
        """Return the trace of each matrix on all examples; every batch needs two probes.

        The batches are fixed, so only the spread between the probes of the same batch is an error.
        """
        means = sum(share * np.mean(probes, axis=0) for share, probes in zip(self.shares, self.samples, strict=True))
        errors = np.sqrt(self._squared_errors().sum(axis=0))
        pairs = zip(np.atleast_1d(means), errors, strict=True)
        return {
            path: Estimate(float(mean), float(error)) for path, (mean, error) in zip(self.matrices, pairs, strict=True)
        }

    @property
    def shares(self) -> list[float]:
        """The share of each batch of all examples."""
        rows = sum(map(len, self.batches))
        return [len(batch) / rows for batch in self.batches]

    @property
    def relative_error(self) -> float:
        """The standard error of the trace that is largest, as a share of it; infinite with too few probes."""
        if min(map(len, self.samples)) < LEAST_PROBES:
            return inf
        largest = max(self.traces().values(), key=lambda trace: abs(trace.mean))
        return largest.error / abs(largest.mean) if largest.error else 0.0

    def _squared_errors(self) -> Array:
        """Return what each batch adds to the squared standard error of each trace, (batches, matrices)."""
        each = [np.var(probes, axis=0, ddof=1) / len(probes) for probes in self.samples]
        return np.square(self.shares)[:, None] * np.stack(each)

    def omegas(self) -> list[float]:
        """Return |mean| + standard deviation over the subsets of each layer's top eigenvalue (Q-BERT)."""
        return [abs(fmean(values)) + pstdev(values) for values in zip(*self.eigenvalues, strict=True)]

    def save(self, file: Path) -> None:
        """Replace the file atomically."""
        part = file.with_name(f"{file.name}.part")
        part.write_text(json.dumps(vars(self)) + "\n", encoding="utf-8")
        os.replace(part, file)


def load_measured(file: Path, identity: Mapping[str, Any]) -> Measured | None:
    """Return what the file holds, or None if there is none.

    Raises:
        InputError: it was measured with other settings; names them.
        CheckpointError: it is damaged.
    """
    if not file.is_file():
        return None
    found = validated(Measured, _object(file), f"{file} is damaged, delete it to measure again", CheckpointError)
    old, new = found.identity, json.loads(json.dumps(identity))
    changed = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    if changed:
        raise InputError(
            f"{file} holds measurements with other settings ({', '.join(changed)}); repeat their command, delete the "
            "file, or choose another folder for --output"
        )
    if len(found.samples) != len(found.batches):
        raise CheckpointError(f"{file} is damaged: samples are not those of its batches; delete it to measure again")
    return found


def _object(file: Path) -> Mapping[str, Any]:
    values = read_json(file, CheckpointError)
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} is damaged: it holds no JSON object; delete it to measure again")
    return values
