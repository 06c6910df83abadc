"""Dequantizes the tensors of a quantized model's plan to float32."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from q8core.arrays import Array
from q8core.quant.codes import decode
from q8core.quant.ops.stored import dequantize, dequantize_bias
from q8core.quant.plan import Plan, SitePlan


def dequantized_tensors(plan: Plan, tensors: Mapping[str, Array]) -> dict[str, NDArray[np.float32]]:
    """Return a plan's tensors dequantized to float32, by the names of sites.

    Weights become `weight * weight_scale`, divided by `input_smoothing` if there is one. int32 biases become
    `bias * (input_scale * weight_scale)`, as the integer engine adds them. Everything else is copied, and the scales
    themselves are left out.
    """
    floats: dict[str, NDArray[np.float32]] = {}
    for site in plan.sites.values():
        for name in site.site.float_tensors:
            floats[name] = _dequantized(site, name, tensors)
    return floats


def _dequantized(site: SitePlan, name: str, tensors: Mapping[str, Array]) -> NDArray[np.float32]:
    tensor = tensors[name]
    if site.weight is None or (site.kind == "dynamic" and name.endswith(".bias")):
        return tensor.astype(np.float32)
    scale = tensors[f"{site.path}.weight_scale"]
    if name.endswith(".bias"):
        return dequantize_bias(tensor, tensors[f"{site.path}.input_scale"], scale)
    weight = dequantize(decode(tensor, site.weight.bits, site.site.shape[-1]), scale.reshape(-1, 1))
    return np.divide(weight, tensors[f"{site.path}.input_smoothing"], out=weight) if site.smooths else weight
