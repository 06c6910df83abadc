"""Taking tensors out of a checkpoint one by one, each checked, none left over."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from q8core.errors import CheckpointError

Shape = tuple[int, ...]


class TensorSource:
    """A reader over a mapping of tensors.

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

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def rows(self, name: str) -> int:
        """Return the first dimension of a tensor.

        Raises:
            CheckpointError: if it is missing.
        """
        if name not in self._tensors:
            raise CheckpointError(f"the tensor {name} is missing")
        return len(self._tensors[name])

    def take(self, name: str, *shapes: Shape, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> Tensor:
        """Return the tensor `name`, which must have one of the shapes and dtypes.

        Raises:
            CheckpointError: if it is missing or different.
        """
        try:
            tensor = self._tensors[name]
        except KeyError:
            raise CheckpointError(f"the tensor {name} is missing") from None
        if tensor.shape not in shapes:
            allowed = " or ".join(str(shape) for shape in shapes)
            raise CheckpointError(f"{name} has shape {tuple(tensor.shape)}; needed: {allowed}")
        if tensor.dtype not in dtypes:
            raise CheckpointError(f"{name} is {tensor.dtype}; needed: {' or '.join(str(dtype) for dtype in dtypes)}")
        self._taken.add(name)
        return tensor

    def take_float(self, name: str, *shapes: Shape) -> Tensor:
        """Return a floating-point tensor as float32 (float16 and bfloat16 files are widened)."""
        return self.take(name, *shapes, dtypes=(torch.float32, torch.float16, torch.bfloat16)).to(torch.float32)

    def scale(self, name: str, *shapes: Shape) -> Tensor:
        """Return a float32 scale.

        Raises:
            CheckpointError: if a value is not positive and finite.
        """
        scale = self.take(name, *shapes)
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise CheckpointError(f"{name} holds a value that is not a positive finite number")
        return scale

    def finish(self, ignored_prefixes: tuple[str, ...] = ()) -> None:
        """Check that no tensor was left unused, as a misspelt or foreign one would be.

        Raises:
            CheckpointError: naming the first unused tensors.
        """
        left = sorted(set(self._tensors) - self._taken)
        unknown = [name for name in left if not name.startswith(ignored_prefixes)] if ignored_prefixes else left
        if unknown:
            raise CheckpointError(f"{len(unknown)} tensors fit no part of the model, first: {', '.join(unknown[:3])}")
