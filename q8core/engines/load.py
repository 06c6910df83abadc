"""Loads an engine from a checkpoint, or builds one from a plan and its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from q8core.arrays import Array
from q8core.checkpoint import Checkpoint
from q8core.engines.choice.autoselect import choose_kernel
from q8core.engines.choice.fp32_kernels import choose_fp32_kernel
from q8core.engines.engine import EncoderEngine, Forward
from q8core.engines.memory.heap import loading_weights
from q8core.engines.protocol import check_backend, check_kernel
from q8core.engines.tensors.source import TensorSource
from q8core.errors import InputError
from q8core.quant.bits import bits_of
from q8core.quant.plan import Plan


def load_engine(
    checkpoint: Checkpoint | Path, backend: str, kernel: str = "auto", threads: int | None = None
) -> EncoderEngine:
    """Load a checkpoint's model on a backend.

    Args:
        checkpoint: an opened checkpoint, or its folder.
        backend: fp32 or int8.
        kernel: native, onednn, fbgemm (int8 only) or auto: native where this CPU has a vector variant of it; else for
            int8 the fastest, measured, and for fp32 onednn.
        threads: CPU threads; None for OpenMP's setting, which is torch's if torch is imported.

    Raises:
        InputError: for an unknown backend or kernel, or fewer than one thread.
        CheckpointError: if the checkpoint lacks what the backend needs.
        EngineError: if the kernel cannot be used on this machine.
    """
    check_backend(backend)
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.open(checkpoint)
    facts: dict[str, object] = {"checkpoint": opened.name}
    if backend == "int8":
        return build_engine(opened.plan, opened.quantized_tensors(), kernel, threads, facts, opened.quantized_sha256)
    tensors, facts["dequantized"] = opened.float_tensors()
    return build_engine(opened.float_plan, tensors, kernel, threads, facts)


def build_engine(
    plan: Plan,
    tensors: Mapping[str, Array],
    kernel: str = "auto",
    threads: int | None = None,
    facts: Mapping[str, object] | None = None,
    sha256: str | None = None,
) -> EncoderEngine:
    """Build an engine from a plan and the tensors that it lists: fp32 for a plan without a scheme, else int8.

    Each tensor is read once and packed at once, so a mapping that loads lazily keeps peak memory low. With the
    `sha256` of the verified file that holds them, packed weights are kept in the cache and shared between processes.

    Raises:
        InputError: for an unknown kernel, or fewer than one thread.
        CheckpointError: if a tensor is missing, is not what the plan says, or is not part of the model.
        EngineError: if the kernel cannot be used on this machine.
    """
    kernel = check_kernel(kernel)
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}; at least 1")
    source = TensorSource(tensors, sha256)
    scheme = plan.scheme.name if plan.scheme else None
    known: dict[str, object] = {"scheme": scheme, "bits": str(bits_of(plan)), "dequantized": False}
    known.update(facts or {})
    with loading_weights():
        if plan.scheme is None:
            fp32 = choose_fp32_kernel(kernel)
            model: Forward = fp32.load(plan, source)
            source.finish()
            known.update(fp32.facts())
            return EncoderEngine(plan.head, "fp32", fp32.name, model, threads, known)
        choice = choose_kernel(kernel, plan, threads)
        model = choice.kernel.load(plan, source)
        known.update(choice.facts(), bits_note=choice.kernel.bits_note(plan))
    return EncoderEngine(plan.head, "int8", choice.kernel.name, model, threads, known)
