"""The tensors of a quantized checkpoint's file against its plan: those that it names, and no others."""

from __future__ import annotations

from collections.abc import Mapping

from q8core.checkpoint.tensors import TensorFile
from q8core.errors import CheckpointError
from q8core.quant.plan import Plan


def check_layout(file: TensorFile, names: Mapping[str, str], plan: Plan) -> None:
    """Check that every tensor is there, in its shape and type, and none besides.

    Args:
        file: the quantized tensors.
        names: the site's name of each tensor -> the file's.
        plan: of the model.

    Raises:
        CheckpointError: naming the first tensor that is missing, unknown, of another shape, or at odds with the scheme.
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
