"""The steps of a simulated integer layer between its matrix products, each a single pass over memory.

On a CPU the native library runs them if it is built; otherwise torch's operators do the same, one operation at a time.
Both give the same bits, except `column_sums`, which adds in another order.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from q8core.errors import EngineError
from q8core.native import load_library, variants
from q8core.quant.ops.arithmetic import QMAX, integer_limits, quantize

_TYPES = {torch.float32: 0, torch.bfloat16: 1}
_SINGLE = 2**15
"""Up to this many elements, waking more threads takes longer than the work itself."""

_BLOCK = 2**17
"""Elements that torch's operators process at a time: 512 KiB of float32, the size of a core's cache."""


def available() -> bool:
    """Return whether the library is available, so that tensors on the CPU need not use torch's slower operators."""
    return _library() is not None


def row_magnitudes(x: Tensor) -> Tensor:
    """Return max|x| of each row, (..., K) -> (...) float32; NaN for a row that contains NaN."""
    x = x.detach()
    if not _is_native(x):
        return torch.maximum(x.amax(dim=-1), -x.amin(dim=-1)).to(torch.float32)
    found = torch.empty(x.shape[:-1], dtype=torch.float32)
    _call("q8_row_magnitudes", x, found.data_ptr())
    return found


def row_sides(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return max(-x) and max(x) of each row, at least 0, (..., K) -> two (...) float32.

    If a row contains NaN, at least one of the two is NaN.
    """
    x = x.detach()
    if not _is_native(x):
        sides = (-x.amin(dim=-1)).clamp_(min=0), x.amax(dim=-1).clamp_(min=0)
        return sides[0].to(torch.float32), sides[1].to(torch.float32)
    low, high = (torch.empty(x.shape[:-1], dtype=torch.float32) for _ in range(2))
    _call("q8_row_sides", x, low.data_ptr(), high.data_ptr())
    return low, high


def to_grid(x: Tensor, scale: Tensor, dtype: torch.dtype, zero_point: int | None = None, bits: int = 8) -> Tensor:
    """Return the integers `quantize(x, scale, zero_point, bits)`, (..., K), in a dtype that holds them exactly.

    Args:
        x: the tensor to quantize.
        scale: float32: one element, one per row (..., 1), or one per column (K,).
        dtype: the result's dtype.
        zero_point: the zero point of an asymmetric grid; None for a symmetric one.
        bits: bits of an integer.
    """
    x = x.detach()
    of_columns = scale.numel() > 1 and scale.dim() == 1
    if _is_native(x, dtype) and not of_columns:
        return _rows_to(x, scale.reciprocal(), None, dtype, integer_limits(zero_point, bits))
    if x.numel() <= _BLOCK or (scale.numel() != 1 and not of_columns) or not x.is_contiguous():
        return quantize(x, scale, zero_point, bits).to(dtype)
    # block by block, so that a block stays in the cache from step to step: takes about half the time
    q = torch.empty(x.shape, dtype=dtype, device=x.device)
    for source, target in zip(_blocks(x), _blocks(q), strict=True):
        target.copy_(quantize(source, scale, zero_point, bits))
    return q


def on_grid(x: Tensor, scale: Tensor) -> Tensor:
    """Return `quantize(x, scale) * scale`, rounded to the dtype of `x`; `scale` as in `to_grid`."""
    x = x.detach()
    if _is_native(x, x.dtype):
        return _rows_to(x, scale.reciprocal(), scale, x.dtype)
    return quantize(x, scale).mul_(scale).to(x.dtype)


def scaled(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return float32(x) * scale, rounded to `dtype`; `scale` as in `to_grid`."""
    if _is_native(x, dtype):
        return _rows_to(x, None, scale, dtype)
    return x.to(torch.float32).mul(scale).to(dtype)


def rescale_(acc: Tensor, r: Tensor, bias: Tensor) -> None:
    """Replace accumulators (..., K) by float32(acc) * r + bias, in place and rounded to their dtype.

    Args:
        acc: the accumulators, contiguous.
        r: float32, one element or (K,).
        bias: float32 (K,).
    """
    if _is_native(acc):
        columns = acc.shape[-1]
        r, bias = r.expand(columns).contiguous(), bias.contiguous()
        _call("q8_rescale", acc, r.data_ptr(), bias.data_ptr())
        return
    for block in _blocks(acc):
        if block.dtype == torch.float32:
            block.mul_(r).add_(bias)
        else:
            block.copy_(block.to(torch.float32).mul_(r).add_(bias))


def column_sums(x: Tensor) -> Tensor:
    """Return the float32 sums (K,) of the columns of `x` (N, K)."""
    if not _is_native(x):
        return x.sum(0, dtype=torch.float32)
    sums = torch.empty(x.shape[-1], dtype=torch.float32)
    _call("q8_column_sums", x, sums.data_ptr())
    return sums


@cache
def _library() -> tuple[Any, int] | None:
    """Return the library and its best variant, or None if it is not built: torch's operators give the same bits."""
    try:
        return load_library(), next(iter(variants().values()))
    except EngineError:
        return None


def _is_native(x: Tensor, result: torch.dtype = torch.float32) -> bool:
    return (
        x.dtype in _TYPES
        and result in _TYPES
        and x.dim() > 0
        and x.numel() > 0
        and x.device.type == "cpu"
        and x.is_contiguous()
        and _library() is not None
    )


def _call(name: str, x: Tensor, *arguments: float | None) -> None:
    """Call a function of the library on the rows of `x`; the number of threads is its last argument."""
    library = _library()
    assert library is not None
    threads = 1 if x.numel() <= _SINGLE else torch.get_num_threads()
    columns = x.shape[-1]
    function = getattr(library[0], name)
    function(library[1], x.data_ptr(), _TYPES[x.dtype], x.numel() // columns, columns, *arguments, threads)


def _rows_to(
    x: Tensor,
    inverse: Tensor | None,
    scale: Tensor | None,
    dtype: torch.dtype,
    limits: tuple[int, int] = (-QMAX, QMAX),
) -> Tensor:
    """Return x, rounded to a grid's integers after multiplying by `inverse`, times `scale`; None skips either step."""
    result = torch.empty(x.shape, dtype=dtype)
    given = [None if each is None else each.contiguous() for each in (inverse, scale)]
    count = next(each.numel() for each in given if each is not None)
    if count not in (1, x.numel() // x.shape[-1]):
        raise ValueError(f"{count} scales for the rows of a tensor of shape {tuple(x.shape)}")
    places = [None if each is None else each.data_ptr() for each in given]
    _call("q8_to_grid", x, places[0], *limits, places[1], int(count != 1), result.data_ptr(), _TYPES[dtype])
    return result


def _blocks(x: Tensor) -> tuple[Tensor, ...]:
    """Return views of whole rows of a contiguous `x` (..., K), about `_BLOCK` elements each."""
    rows = x.view(-1, x.shape[-1])
    return rows.split(max(1, _BLOCK // x.shape[-1]))
