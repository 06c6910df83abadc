"""Write a checkpoint folder, the manifest last: a folder without it is not a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig

from q8core.checkpoint.manifest import (
    CLASS_OF_TASK,
    FLOAT_FILE,
    INT8_FILE,
    MANIFEST_FILE,
    GoldenExample,
    Manifest,
    file_entry,
)
from q8core.checkpoint.tensors import write_tensors
from q8core.quant import Scheme
from q8core.tasks.task import TaskKind
from q8core.tokenizer import TOKENIZER_FILES, copy_tokenizer


def write_checkpoint(
    folder: Path,
    *,
    name: str,
    config: BertConfig,
    task: TaskKind,
    labels: Sequence[str],
    max_length: int,
    scheme: Scheme,
    tensors: Mapping[str, torch.Tensor],
    tokenizer_folder: Path,
    golden: Sequence[GoldenExample] = (),
    training: Mapping[str, Any] | None = None,
    scores: Mapping[str, Any] | None = None,
) -> None:
    """Write ``model.int8.safetensors``, ``config.json``, the tokenizer and ``q8bert.json``.

    A float ``model.safetensors`` that already lies in the folder becomes part of the checkpoint. The config names the
    task's class, whatever the config of the base named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    copy_tokenizer(tokenizer_folder, folder)
    config = deepcopy(config)
    config.architectures = [CLASS_OF_TASK[task]]
    config.save_pretrained(folder)
    write_tensors(folder / INT8_FILE, tensors)
    names = [INT8_FILE, FLOAT_FILE, "config.json", *TOKENIZER_FILES]
    manifest = Manifest(
        name=name,
        task=task,
        labels=tuple(labels),
        max_length=max_length,
        scheme=scheme.to_dict(),
        files={file: file_entry(folder / file) for file in names if (folder / file).is_file()},
        golden=tuple(golden),
        training=dict(training or {}),
        scores=dict(scores or {}),
    )
    write_manifest(folder, manifest)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace ``q8bert.json`` in one step."""
    part = folder / f"{MANIFEST_FILE}.part"
    part.write_text(manifest.to_json(), encoding="utf-8")
    os.replace(part, folder / MANIFEST_FILE)
