"""Reads tensors from a checkpoint one by one, as arrays, each checked against its site's plan, with none left over."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from q8core.arrays import Array
from q8core.errors import CheckpointError
from q8core.quant.plan import DType, SitePlan

_DTYPES: dict[DType, type[np.generic]] = {"F32": np.float32, "I8": np.int8, "U8": np.uint8, "I32": np.int32}


class TensorSource:
    """A reader over a mapping of tensors by the names of sites.

    The mapping may load lazily: each tensor is read once and not kept, so packing tensors one by one needs no second
    copy of the model in memory.

    Args:
        tensors: the tensors by name.
        sha256: digest of the verified file that holds them, or None.
    """

    def __init__(self, tensors: Mapping[str, Array], sha256: str | None = None) -> None:
        self._tensors = tensors
        self.sha256 = sha256
        self._taken: set[str] = set()

    def take(self, plan: SitePlan, leaf: str) -> Array:
        """Return the tensor `leaf` of a site, checked against the plan; float16 is converted to float32.

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
            raise CheckpointError(f"{name} has shape {tensor.shape}; the plan says {planned.shape}")
        wanted = np.dtype(_DTYPES[planned.dtype])
        if tensor.dtype != wanted and not (wanted == np.float32 and tensor.dtype == np.float16):
            raise CheckpointError(f"{name} is {tensor.dtype}; the plan says {wanted}")
        self._taken.add(name)
        return tensor.astype(wanted, copy=False)

    def scale(self, plan: SitePlan, leaf: str) -> Array:
        """Return a float32 scale of a site.

        Raises:
            CheckpointError: if it is not as planned, or a value is not positive and finite.
        """
        scale = self.take(plan, leaf)
        if not bool((np.isfinite(scale) & (scale > 0)).all()):
            raise CheckpointError(f"{plan.path}.{leaf} holds a value that is not a positive finite number")
        return scale

    def finish(self) -> None:
        """Check that no tensor is left unused, as a misspelt or unknown one would be.

        Raises:
            CheckpointError: naming the first unused tensors.
        """
        left = sorted(set(self._tensors) - self._taken)
        if left:
            raise CheckpointError(f"{len(left)} tensors fit no part of the model, first: {', '.join(left[:3])}")
