"""Checks that a quantized checkpoint's file has the tensors of its plan, and no others."""

from __future__ import annotations

from collections.abc import Mapping

from q8core.checkpoint.tensors import TensorFile
from q8core.errors import CheckpointError
from q8core.quant.plan import Plan


def check_layout(file: TensorFile, names: Mapping[str, str], plan: Plan) -> None:
    """Check that every tensor is there, with the right shape and dtype, and that there are no others.

    Args:
        file: the quantized tensors.
        names: each tensor's site name -> its name in the file.
        plan: the model's plan.

    Raises:
        CheckpointError: naming the first tensor that is missing, unknown, of another shape, or wrong for the scheme.
    """
    scheme = f"scheme {plan.scheme.name}" if plan.scheme else "plan"
    for name, tensor in plan.tensors.items():
        stored = names.get(name, name)
        if stored not in file:
            raise CheckpointError(f"{file.path} lacks the tensor {stored}, which its {scheme} needs")
        found = file.dtype(stored), file.shape(stored)
        if found[0] != tensor.dtype:
            raise CheckpointError(f"{file.path}: {stored} is {found[0]}; its {scheme} needs {tensor.dtype}")
        if found[1] != tensor.shape:
            raise CheckpointError(f"{file.path}: {stored} has shape {found[1]}; its {scheme} needs {tensor.shape}")
    known = {names.get(name, name) for name in plan.tensors}
    unknown = sorted(set(file) - known)
    if unknown:
        raise CheckpointError(f"{file.path} holds tensors that its {scheme} does not have: {', '.join(unknown[:5])}")
