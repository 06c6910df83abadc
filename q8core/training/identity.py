"""The identity of a run: everything it depends on, compared before it is resumed and before its scores are reused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from q8core.checkpoint.manifest import file_entry
from q8core.tasks.digest import examples_digest
from q8core.tasks.task import Task
from q8core.training.model import find_source


def run_identity(source: str, task: Task, data: str, scheme: str) -> dict[str, Any]:
    """Return names for people and digests for comparison, as JSON values.

    Args:
        source: the model to start from, a folder or hub id.
        task: the data.
        data: description of the data for the record.
        scheme: the scheme's name.

    Raises:
        CheckpointError: the source is not a float model.
    """
    return {
        "base": Path(source).name,
        "base_sha256": weights_digest(source),
        "scheme": scheme,
        "data": data,
        "train_sha256": examples_digest(task.train_examples),
        **dev_identity(task),
    }


def dev_identity(task: Task) -> dict[str, Any]:
    """Return what scores depend on besides the model: the digest of the dev examples and the longest input."""
    return {"dev_sha256": examples_digest(task.dev_examples), "max_length": task.max_length}


def weights_digest(source: str) -> str:
    """Return the SHA-256 of a model's float weights, since the same name can have other weights.

    Raises:
        CheckpointError: it is not a float model; see :func:`q8core.checkpoint.float_source.open_source`.
    """
    return str(file_entry(find_source(source).file.path)["sha256"])
