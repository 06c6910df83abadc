"""The quantization core: schemes, plans, the integer arithmetic, quantization-aware layers, prepare and convert.

network -> ``prepare(network, Plan.of(spec, head, preset("q8bert")))`` -> train or calibrate -> ``convert`` -> tensors.
"""

from __future__ import annotations

from q8core.quant.ops.arithmetic import (
    BIAS_MAX,
    QMAX,
    dequantize,
    dequantize_bias,
    per_row,
    quantize,
    quantize_bias,
    quantize_i8,
    rescale_factor,
    row_scales,
    scale_from_threshold,
)
from q8core.quant.plan import Plan
from q8core.quant.qat.convert import convert, dequantized_tensors
from q8core.quant.qat.layers import QATEmbedding, QATLinear
from q8core.quant.qat.prepare import calibrate, master_weights, prepare, quantized_layers
from q8core.quant.quantizer import Quantizer
from q8core.quant.schemes import PRESETS, SLOTS, Scheme, SiteScheme, find_scheme, preset

__all__ = [
    "BIAS_MAX",
    "PRESETS",
    "QMAX",
    "SLOTS",
    "Plan",
    "QATEmbedding",
    "QATLinear",
    "Quantizer",
    "Scheme",
    "SiteScheme",
    "calibrate",
    "convert",
    "dequantize",
    "dequantize_bias",
    "dequantized_tensors",
    "find_scheme",
    "master_weights",
    "per_row",
    "prepare",
    "preset",
    "quantize",
    "quantize_bias",
    "quantize_i8",
    "quantized_layers",
    "rescale_factor",
    "row_scales",
    "scale_from_threshold",
]
