"""Engines: a checkpoint's tensors, packed for this CPU, turning token batches into logits.

checkpoint -> ``load_engine`` -> ``self_test`` -> ``warmup`` -> ``infer(TokenBatch)`` -> logits
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import BertConfig

from q8core.checkpoint import Checkpoint
from q8core.checkpoint.layout import head_path
from q8core.engines.autoselect import choose_kernel
from q8core.engines.bert import BertEngine, Forward
from q8core.engines.fp32_kernels import choose_fp32_kernel
from q8core.engines.heap import loading_weights
from q8core.engines.packing import TokenBatch
from q8core.engines.protocol import Backend, Engine, EngineMemory, KernelName, check_backend, check_kernel
from q8core.engines.self_test import SelfTestResult, self_test
from q8core.engines.shape import ModelShape
from q8core.engines.source import TensorSource
from q8core.errors import CheckpointError, InputError
from q8core.tasks.task import TaskKind

__all__ = [
    "Backend",
    "Engine",
    "EngineMemory",
    "KernelName",
    "SelfTestResult",
    "TokenBatch",
    "build_engine",
    "load_engine",
    "self_test",
]

# Left in older or broader Hugging Face files; transformers ignores them too.
_UNUSED_FLOAT = ("bert.embeddings.position_ids", "cls.")


def load_engine(
    checkpoint: Checkpoint | Path, backend: str, kernel: str = "auto", threads: int | None = None
) -> BertEngine:
    """Load a checkpoint's model on a backend.

    Args:
        checkpoint: an opened checkpoint, or its folder.
        backend: fp32 or int8.
        kernel: native, onednn, fbgemm (int8 only) or auto: for int8 the fastest, measured; for fp32 native where
            this CPU runs it, else onednn.
        threads: CPU threads; None leaves torch's setting.

    Raises:
        InputError: for an unknown backend or kernel, or fewer than one thread.
        CheckpointError: if the checkpoint lacks what the backend needs.
        EngineError: if the kernel cannot be used on this machine.
    """
    check_backend(backend)
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.open(checkpoint)
    facts: dict[str, object] = {"checkpoint": opened.name}
    sha256 = None
    if backend == "int8":
        tensors: Mapping[str, Tensor] = opened.int8_tensors()
        sha256 = opened.int8_sha256
        facts["scheme"] = opened.scheme.name if opened.scheme else None
    else:
        tensors, facts["dequantized"] = opened.float_tensors()
    return build_engine(opened.config, opened.task, tensors, backend, kernel, threads, facts, sha256)


def build_engine(
    config: BertConfig,
    task: TaskKind,
    tensors: Mapping[str, Tensor],
    backend: str,
    kernel: str = "auto",
    threads: int | None = None,
    facts: Mapping[str, object] | None = None,
    sha256: str | None = None,
) -> BertEngine:
    """Build an engine from tensors: float ones under Hugging Face's names, or those of an int8 checkpoint.

    Each tensor is asked for once and packed at once, so a mapping that loads lazily keeps the peak low. With the
    `sha256` of the verified file that holds them, packed weights are kept in the cache and shared between processes.

    Raises:
        InputError: for an unknown backend or kernel, or fewer than one thread.
        CheckpointError: if a tensor is missing, does not fit, or is not part of the model.
        EngineError: if the kernel cannot be used on this machine.
    """
    backend, kernel = check_backend(backend), check_kernel(kernel)
    if threads is not None:
        if threads < 1:
            raise InputError(f"threads is {threads}; at least 1")
        torch.set_num_threads(threads)
    shape, source = ModelShape.of(config), TensorSource(tensors, sha256)
    known: dict[str, object] = {"scheme": None, "dequantized": False, **(facts or {})}
    with loading_weights(), torch.inference_mode():
        labels = _head_rows(source, task)
        if backend == "int8":
            choice = choose_kernel(kernel, shape, task, source)
            model: Forward = choice.kernel.load(shape, task, source, labels)
            name = choice.kernel.name
            known.update(choice.facts())
        else:
            fp32 = choose_fp32_kernel(kernel)
            model = fp32.load(shape, task, source, labels)
            source.finish(_UNUSED_FLOAT if task == "classify" else (*_UNUSED_FLOAT, "bert.pooler."))
            name = fp32.name
            known.update(fp32.facts())
    return BertEngine(task, backend, name, model, threads, known)


def _head_rows(source: TensorSource, task: TaskKind) -> int:
    """Return the outputs of the task's head: 2 for qa, as many as the classifier has rows otherwise."""
    if task == "qa":
        return 2
    rows = source.rows(f"{head_path(task)}.weight")
    if rows < 1:
        raise CheckpointError("the classifier has no rows")
    return rows
