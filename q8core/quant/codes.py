"""How the integers of a weight are stored: fewer bits lie side by side in bytes, and every code decodes to int8.

A weight (rows, columns) of 8 bits, or of 5 to 7, is stored as it is. With 4 or 3 bits two columns share a byte, with 2
bits four do, the first column in the lowest bits, each as two's complement; a row's last byte is filled up with zeros.
So each row begins at a byte, and whoever computes with int8 runs every width, exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor


def stored_bits(bits: int) -> int:
    """Return the bits that a code of `bits` takes in a file: 8, 4 or 2."""
    return 8 if bits > 4 else 4 if bits > 2 else 2


def stored_shape(shape: tuple[int, ...], bits: int) -> tuple[int, ...]:
    """Return the shape of a stored weight: whole bytes in each row."""
    each = 8 // stored_bits(bits)
    return (*shape[:-1], -(-shape[-1] // each))


def encode(weight: Tensor, bits: int) -> Tensor:
    """Return the codes of integers (rows, columns) int8: themselves, or uint8 (rows, bytes of a row)."""
    width = stored_bits(bits)
    if width == 8:
        return weight
    each = 8 // width
    padded = torch.nn.functional.pad(weight, (0, -weight.shape[-1] % each))
    parts = padded.view(torch.uint8).unflatten(-1, (-1, each)) & (2**width - 1)
    shifts = torch.arange(each, dtype=torch.uint8) * width
    return (parts << shifts).sum(-1, dtype=torch.int64).to(torch.uint8)


def decode(codes: Tensor, bits: int, columns: int) -> Tensor:
    """Return the integers (rows, columns) int8 of stored codes."""
    width = stored_bits(bits)
    if width == 8:
        return codes
    each = 8 // width
    shifts = torch.arange(each, dtype=torch.uint8) * width
    # up to the sign's place, and down again as a signed number
    raised = ((codes.unsqueeze(-1) >> shifts) << (8 - width)).view(torch.int8)
    return (raised >> (8 - width)).flatten(-2)[..., :columns].contiguous()
