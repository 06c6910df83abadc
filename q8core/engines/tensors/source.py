"""Taking tensors out of a checkpoint one by one, each checked against its site's plan, none left over."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from q8core.errors import CheckpointError
from q8core.quant.plan import DType, SitePlan

_DTYPES: dict[DType, torch.dtype] = {"F32": torch.float32, "I8": torch.int8, "U8": torch.uint8, "I32": torch.int32}
_HALVES = (torch.float16, torch.bfloat16)


class TensorSource:
    """A reader over a mapping of tensors by the names of sites.

    The mapping may load lazily: each tensor is asked for once and not kept, so whoever packs it and drops it
    holds no second copy of the model.

    Args:
        tensors: the tensors by name.
        sha256: digest of the verified file that holds them, if they come from one.
    """

    def __init__(self, tensors: Mapping[str, Tensor], sha256: str | None = None) -> None:
        self._tensors = tensors
        self.sha256 = sha256
        self._taken: set[str] = set()

    def take(self, plan: SitePlan, leaf: str) -> Tensor:
        """Return the tensor `leaf` of a site, which must be what the plan says; halves of floats are widened.

        Raises:
            CheckpointError: if it is missing, or has another shape or type.
        """
        name = f"{plan.path}.{leaf}"
        planned = plan.tensors[name]
        try:
            tensor = self._tensors[name]
        except KeyError:
            raise CheckpointError(f"the tensor {name} is missing") from None
        if tensor.shape != planned.shape:
            raise CheckpointError(f"{name} has shape {tuple(tensor.shape)}; the plan says {planned.shape}")
        wanted = _DTYPES[planned.dtype]
        if tensor.dtype != wanted and not (wanted == torch.float32 and tensor.dtype in _HALVES):
            raise CheckpointError(f"{name} is {tensor.dtype}; the plan says {wanted}")
        self._taken.add(name)
        return tensor.to(wanted)

    def scale(self, plan: SitePlan, leaf: str) -> Tensor:
        """Return a float32 scale of a site.

        Raises:
            CheckpointError: if it is not there as planned, or a value is not positive and finite.
        """
        scale = self.take(plan, leaf)
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise CheckpointError(f"{plan.path}.{leaf} holds a value that is not a positive finite number")
        return scale

    def finish(self) -> None:
        """Check that no tensor was left unused, as a misspelt or foreign one would be.

        Raises:
            CheckpointError: naming the first unused tensors.
        """
        left = sorted(set(self._tensors) - self._taken)
        if left:
            raise CheckpointError(f"{len(left)} tensors fit no part of the model, first: {', '.join(left[:3])}")
