"""From a prepared model to the tensors of the int8 checkpoint, and back to float32 tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from q8core.errors import CalibrationError, CheckpointError
from q8core.quant.arithmetic import dequantize, dequantize_bias, per_row, quantize_i8
from q8core.quant.layers import QATEmbedding, QATLinear
from q8core.quant.prepare import quantized_layers

_COMPANIONS = ("weight_scale", "input_scale", "input_zero_point", "output_scale")


def convert(prepared: nn.Module) -> dict[str, Tensor]:
    """Return the int8 checkpoint of a trained or calibrated model, by Hugging Face module path.

    A linear at M gives `M.weight` int8 (out, in), `M.weight_scale` float32 (1,) or (out,), `M.input_scale`
    float32 (1,) and `M.bias` int32 (out,), and where the input is asymmetric `M.input_zero_point` int32 (1,); with
    dynamic activations there is no input scale and the bias stays float32. Query and key may have `M.output_scale`
    float32 (1,); the value has one where, and only where, the attention products are quantized. An embedding gives
    `M.weight` int8 (rows, dim) and `M.weight_scale` float32 (1,) or (rows,). All other parameters stay float32.

    Raises:
        CalibrationError: if a range was never observed, or a parameter is infinite or NaN; names the module.
        SchemeError: if the model was not prepared.
    """
    linears, tables = quantized_layers(prepared)
    tensors: dict[str, Tensor] = {}
    for path, linear in linears.items():
        tensors.update(_named(path, _linear_tensors(linear)))
    for path, table in tables.items():
        tensors.update(_named(path, _embedding_tensors(table)))
    for name, parameter in prepared.named_parameters():
        if name in tensors:
            continue
        if not bool(torch.isfinite(parameter).all()):
            raise CalibrationError(f"{name} has infinite or NaN values")
        tensors[name] = parameter.detach().to(torch.float32).clone()
    return tensors


def dequantized_tensors(int8_tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return float32 tensors under Hugging Face names for the tensors of an int8 checkpoint.

    Weights are `weight * weight_scale`, int32 biases `bias * (input_scale * weight_scale)` as the integer engine
    adds them; everything else is copied. The scales themselves are left out.

    Raises:
        CheckpointError: if the scale of a quantized tensor is missing or does not fit.
    """
    floats: dict[str, Tensor] = {}
    for name, tensor in int8_tensors.items():
        path, _, leaf = name.rpartition(".")
        if leaf in _COMPANIONS:
            continue
        if tensor.dtype == torch.int8:
            scale = _companion(int8_tensors, path, "weight_scale", rows=tensor.shape[0])
            floats[name] = dequantize(tensor, per_row(scale))
        elif tensor.dtype == torch.int32:
            scale_w = _companion(int8_tensors, path, "weight_scale", rows=tensor.shape[0])
            scale_x = _companion(int8_tensors, path, "input_scale", rows=1)
            floats[name] = dequantize_bias(tensor, scale_x, scale_w)
        else:
            floats[name] = tensor.to(torch.float32).clone()
    return floats


def _linear_tensors(layer: QATLinear) -> dict[str, Tensor]:
    scales = layer.scales()
    tensors = {"weight": quantize_i8(layer.weight.detach(), per_row(scales.weight)), "weight_scale": scales.weight}
    if scales.input is None:
        if not bool(torch.isfinite(layer.bias).all()):
            raise CalibrationError(f"{layer.path}.bias has infinite or NaN values")
        tensors["bias"] = layer.bias.detach().clone()
    else:
        tensors["input_scale"] = scales.input
        tensors["bias"] = layer.bias_i32(scales.input, scales.weight)
        zero_point = layer.range_grid("input")[1]
        if zero_point is not None:
            tensors["input_zero_point"] = torch.tensor([zero_point], dtype=torch.int32)
    if scales.output is not None:
        tensors["output_scale"] = scales.output
    return tensors


def _embedding_tensors(table: QATEmbedding) -> dict[str, Tensor]:
    scale = table.scale()
    return {"weight": quantize_i8(table.weight.detach(), per_row(scale)), "weight_scale": scale}


def _named(path: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{path}.{leaf}": tensor.contiguous() for leaf, tensor in tensors.items()}


def _companion(tensors: Mapping[str, Tensor], path: str, leaf: str, rows: int) -> Tensor:
    scale = tensors.get(f"{path}.{leaf}")
    if scale is None:
        raise CheckpointError(f"{path}.{leaf} is missing: {path} is quantized and cannot be read without it")
    if scale.shape not in ((1,), (rows,)):
        raise CheckpointError(f"{path}.{leaf} has shape {tuple(scale.shape)}; allowed are (1,) and ({rows},)")
    return scale
