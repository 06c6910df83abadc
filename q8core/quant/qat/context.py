"""What the quantized layers of one model share during a forward pass: the masks and the last input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from q8core.errors import InputError


class ForwardContext:
    """Remembers a model's `attention_mask` for its observers, and the last shared quantized input.

    One instance belongs to one prepared model: its methods `before` and `after` are that model's forward hooks
    and its layers hold a reference. It is empty between forward passes and copies as empty (`copy.deepcopy` of
    the model gives the copy its own context, shared by the copy's layers).
    """

    def __init__(self, *, ignore_padding: bool) -> None:
        self.ignore_padding = ignore_padding
        self.clear()

    def clear(self) -> None:
        """Forget the mask and the tensors."""
        self.mask: Tensor | None = None
        self.shared: tuple[object, Tensor, Tensor, Tensor] | None = None

    def before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook: keep `attention_mask` (batch, sequence), given by keyword or as second argument.

        Raises:
            InputError: if padding is to be ignored and the mask is not (batch, sequence).
        """
        del model
        self.clear()
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        if not self.ignore_padding or mask is None:
            return
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            found = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise InputError(f"attention_mask must be (batch, sequence) to tell padding from text; found {found}")
        if not bool(mask.all()):  # a mask that hides nothing is not kept: bucketed batches often have no padding
            self.mask = mask

    def after(self, model: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """Forward hook, called even if the pass raised: keep no tensor alive between passes."""
        del model, args, output
        self.clear()

    def recall(self, owner: object, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return (x_q, scale_x) if `owner` quantized this very tensor last, else None."""
        shared = self.shared
        dtype = compute_dtype()
        if shared is None or shared[0] is not owner or shared[1] is not x or shared[2].dtype != dtype:
            return None
        return shared[2], shared[3]

    def remember(self, owner: object, x: Tensor, x_q: Tensor, scale_x: Tensor) -> None:
        """Keep the quantized copy of `x` for the layers that read the same tensor."""
        self.shared = (owner, x, x_q, scale_x)

    def __getstate__(self) -> dict[str, object]:
        return {"ignore_padding": self.ignore_padding, "mask": None, "shared": None}


def compute_dtype() -> torch.dtype:
    """Return the dtype of matrix products: float32, or bfloat16 under autocast.

    Raises:
        InputError: under float16 autocast, where integer accumulators would overflow.
    """
    device = next((name for name in ("cpu", "cuda") if torch.is_autocast_enabled(name)), None)
    if device is None:
        return torch.float32
    dtype = torch.get_autocast_dtype(device)
    if dtype not in (torch.bfloat16, torch.float32):
        raise InputError(f"autocast must use bfloat16: integer accumulators overflow in {dtype}")
    return dtype
