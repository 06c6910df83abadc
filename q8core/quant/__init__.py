"""The quantization core: schemes, the integer arithmetic, quantization-aware layers, prepare and convert.

float BERT -> ``prepare(model, preset("q8bert"))`` -> train or calibrate -> ``convert`` -> int8 tensors.
"""

from __future__ import annotations

from q8core.quant.arithmetic import (
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
from q8core.quant.convert import convert, dequantized_tensors
from q8core.quant.layers import QATEmbedding, QATLinear
from q8core.quant.prepare import calibrate, master_weights, prepare, quantized_layers, slot_of
from q8core.quant.scheme import (
    EMBEDDING_SLOTS,
    LINEAR_SLOTS,
    PRESETS,
    SLOTS,
    Scheme,
    SlotScheme,
    preset,
)
from q8core.quant.scheme_file import find_scheme

__all__ = [
    "BIAS_MAX",
    "EMBEDDING_SLOTS",
    "LINEAR_SLOTS",
    "PRESETS",
    "QMAX",
    "SLOTS",
    "QATEmbedding",
    "QATLinear",
    "Scheme",
    "SlotScheme",
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
    "slot_of",
]
