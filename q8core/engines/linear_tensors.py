"""The tensors of one linear layer as an int8 checkpoint holds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from q8core.engines.source import TensorSource
from q8core.errors import CheckpointError
from q8core.quant.arithmetic import U8_MAX

Kind = Literal["static", "dynamic", "float"]


@dataclass(frozen=True)
class LinearTensors:
    """What a linear layer (in) -> (out) came with.

    Attributes:
        weight: (out, in), int8 or, where the scheme leaves the layer alone, float32.
        bias: (out,), int32 of a static layer, else float32.
        weight_scale: (1,) or (out,), if the weight is int8.
        input_scale: (1,) of a static layer.
        output_scale: (1,) where the output is requantized.
        zero_point: of a static layer's input, where that is asymmetric.
    """

    weight: Tensor
    bias: Tensor
    weight_scale: Tensor | None = None
    input_scale: Tensor | None = None
    output_scale: Tensor | None = None
    zero_point: int | None = None

    @property
    def kind(self) -> Kind:
        """How the layer computes: by what it came with."""
        if self.weight_scale is None:
            return "float"
        return "dynamic" if self.input_scale is None else "static"


def take_linear(source: TensorSource, path: str, out: int, columns: int, *, requantized: bool = False) -> LinearTensors:
    """Take the tensors of the layer at `path`.

    Args:
        source: where they are.
        path: the module's path.
        out: outputs.
        columns: inputs.
        requantized: whether an output scale may be there (queries, keys and values).

    Raises:
        CheckpointError: if one is missing, does not fit, or has no business here.
    """
    if not requantized and f"{path}.output_scale" in source:
        raise CheckpointError(f"{path}.output_scale: only the outputs of query, key and value are requantized")
    weight = source.take(f"{path}.weight", (out, columns), dtypes=(torch.int8, torch.float32))
    if weight.dtype == torch.float32:
        return LinearTensors(weight, own(source.take(f"{path}.bias", (out,))))
    weight_scale = own(source.scale(f"{path}.weight_scale", (1,), (out,)))
    if f"{path}.input_scale" not in source:
        return LinearTensors(weight, own(source.take(f"{path}.bias", (out,))), weight_scale)
    bias = source.take(f"{path}.bias", (out,), dtypes=(torch.int32,))
    input_scale = own(source.scale(f"{path}.input_scale", (1,)))
    output = own(source.scale(f"{path}.output_scale", (1,))) if f"{path}.output_scale" in source else None
    return LinearTensors(weight, bias, weight_scale, input_scale, output, _zero_point(source, path))


def _zero_point(source: TensorSource, path: str) -> int | None:
    name = f"{path}.input_zero_point"
    if name not in source:
        return None
    zero_point = int(source.take(name, (1,), dtypes=(torch.int32,)))
    if not 0 <= zero_point < U8_MAX or zero_point % 2:
        raise CheckpointError(f"{name} is {zero_point}; a zero point is an even number from 0 to 254")
    return zero_point


def own(tensor: Tensor) -> Tensor:
    """Return a copy in memory of its own: a view would keep the whole mapped file resident."""
    return tensor.clone(memory_format=torch.contiguous_format)
