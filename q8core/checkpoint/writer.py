"""Writes checkpoint folders. The manifest comes last: a folder without it is not a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from q8core.arrays import Array
from q8core.checkpoint.config import ModelConfig
from q8core.checkpoint.manifest import (
    FLOAT_FILE,
    INT8_FILE,
    MANIFEST_FILE,
    GoldenExample,
    Manifest,
    PlanRecord,
    file_entry,
)
from q8core.checkpoint.tensors import write_tensors
from q8core.model.head import TaskKind
from q8core.quant import Scheme
from q8core.quant.plan import Plan
from q8core.tokenizer import TOKENIZER_FILES, copy_tokenizer


def write_checkpoint(
    folder: Path,
    *,
    name: str,
    config: ModelConfig,
    task: TaskKind,
    labels: Sequence[str],
    max_length: int,
    scheme: Scheme,
    tensors: Mapping[str, Array],
    tokenizer_folder: Path,
    golden: Sequence[GoldenExample] = (),
    training: Mapping[str, Any] | None = None,
    scores: Mapping[str, Any] | None = None,
) -> None:
    """Write ``model.int8.safetensors``, ``config.json``, the tokenizer and ``q8bert.json``.

    A float ``model.safetensors`` that is already in the folder becomes part of the checkpoint. The config names the
    task's class, whatever class the base model's config named.

    Args:
        folder: the checkpoint's folder.
        name: the checkpoint's name.
        config: the model's config.
        task: the task of the model's head.
        labels: the names of a classifier's outputs.
        max_length: the longest input in tokens.
        scheme: the scheme that the model was quantized with.
        tensors: the quantized tensors, by the names of sites.
        tokenizer_folder: folder of the tokenizer to copy.
        golden: inputs with known logits.
        training: a record of how the model was made.
        scores: the scores that it reached.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    copy_tokenizer(tokenizer_folder, folder)
    config.save(folder, task)
    write_tensors(folder / INT8_FILE, tensors)
    names = [INT8_FILE, FLOAT_FILE, "config.json", *TOKENIZER_FILES]
    manifest = Manifest(
        name=name,
        family=config.family.model_type,
        task=task,
        labels=tuple(labels),
        max_length=max_length,
        plan=PlanRecord.of(Plan.of(config.spec, config.head(task), scheme)),
        files={file: file_entry(folder / file) for file in names if (folder / file).is_file()},
        golden=tuple(golden),
        training=dict(training or {}),
        scores=dict(scores or {}),
    )
    write_manifest(folder, manifest)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace ``q8bert.json`` atomically."""
    part = folder / f"{MANIFEST_FILE}.part"
    part.write_text(manifest.to_json(), encoding="utf-8")
    os.replace(part, folder / MANIFEST_FILE)
