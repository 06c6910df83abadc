"""Converts a prepared network to the tensors of its plan."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from q8core.arrays import Array
from q8core.errors import CalibrationError
from q8core.quant.codes import Codebook, is_packed
from q8core.quant.qat.embedding import QATEmbedding
from q8core.quant.qat.layers import QATLinear
from q8core.quant.qat.prepare import learned_steps, quantized_layers
from q8core.quant.qat.weight_grid import WeightGrid, spread, weight_integers
from q8core.quant.quantizer import Quantizer


def convert(prepared: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a trained or calibrated network's plan (`SitePlan.tensors`), by the names of sites.

    A static linear at M becomes `M.weight` int8 (out, in), `M.weight_scale` float32 (scales,), `M.input_scale` float32
    (1,) and `M.bias` int32 (out,). With 4 bits or fewer `M.weight` holds codes, and `M.weight_levels` int8 what they
    mean (`q8core.quant.codes`). An asymmetric weight adds `M.weight_zero_point` int8 (scales,), an asymmetric input
    `M.input_zero_point` int32 (1,), a smoothed one `M.input_smoothing` float32 (in,). A dynamic linear has none of the
    input's tensors, and its bias stays float32. Query, key and value may have `M.output_scale` float32 (1,). The weight
    of a table becomes what that of a linear does. All other parameters stay float32, but for learned steps, which are
    in the scales.

    Raises:
        CalibrationError: if a range was never observed, or a parameter is infinite or NaN; names the site.
        SchemeError: if the network was not prepared.
    """
    linears, tables = quantized_layers(prepared)
    tensors: dict[str, Tensor] = {}
    for path, linear in linears.items():
        tensors.update(_named(path, _linear_tensors(linear)))
    for path, table in tables.items():
        tensors.update(_named(path, _weight_tensors(table, table.weight.detach())))
    steps = learned_steps(prepared)
    for name, parameter in prepared.named_parameters():
        if name in tensors or name in steps:
            continue
        if not bool(torch.isfinite(parameter).all()):
            raise CalibrationError(f"{name} has infinite or NaN values")
        tensors[name] = parameter.detach().to(torch.float32).clone()
    return tensors


def _linear_tensors(layer: QATLinear) -> dict[str, Tensor]:
    scales = layer.scales()
    tensors = _weight_tensors(layer, layer.deployed_weight())
    if scales.input is None:
        if not bool(torch.isfinite(layer.bias).all()):
            raise CalibrationError(f"{layer.path}.bias has infinite or NaN values")
        tensors["bias"] = layer.bias.detach().clone()
    else:
        tensors["input_scale"] = scales.input
        tensors["bias"] = layer.bias_i32(scales.input, spread(scales.weight, layer.out_features))
        if layer.smoothing is not None:
            tensors["input_smoothing"] = layer.smoothing.clone()
        zero_point = layer.range_grid("input")[1]
        if zero_point is not None:
            tensors["input_zero_point"] = torch.tensor([zero_point], dtype=torch.int32)
    if scales.output is not None:
        tensors["output_scale"] = scales.output
    return tensors


def _weight_tensors(layer: QATLinear | QATEmbedding, weight: Tensor) -> dict[str, Tensor]:
    """Return what is stored of a weight (rows, columns), as it is deployed."""
    if not bool(torch.isfinite(weight).all()):
        raise CalibrationError(f"{layer.path}.weight has infinite or NaN values")
    grid = layer.weight_grid()
    rows = grid.rows(len(weight))
    w_i8 = weight_integers(weight, layer.weight_quantizer, rows, torch.float32).to(torch.int8)
    tensors = {**_stored(w_i8, layer.weight_quantizer, rows), "weight_scale": grid.scale}
    if grid.zero_point is not None:
        tensors["weight_zero_point"] = grid.zero_point.to(torch.int8)
    return tensors


def _stored(w_i8: Tensor, quantizer: Quantizer, rows: WeightGrid) -> dict[str, Tensor]:
    """Return what is stored of integers, on the CPU: themselves, or their codes and what these mean."""
    if not is_packed(quantizer.bits):
        return {"weight": w_i8.cpu()}
    book = (
        Codebook.of(quantizer.bits, quantizer.grid) if rows.halves is None else Codebook.of_halves(*rows.halves.levels)
    )
    if rows.zero_point is not None:
        book = Codebook(book.levels, rows.zero_point.to(torch.int8).cpu().numpy())
    codes = book.encode(w_i8.cpu().numpy())
    return {"weight": torch.from_numpy(codes), "weight_levels": torch.from_numpy(book.levels)}


def arrays(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    """Return tensors as NumPy arrays for checkpoints and engines; tensors on the CPU share their memory."""
    return {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}


def _named(path: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{path}.{leaf}": tensor.contiguous() for leaf, tensor in tensors.items()}
