"""From the tensors of a quantized model's plan back to the float32 tensors that they stand for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from q8core.arrays import Array
from q8core.quant.codes import decode
from q8core.quant.ops.stored import dequantize, dequantize_bias
from q8core.quant.plan import Plan, SitePlan


def dequantized_tensors(plan: Plan, tensors: Mapping[str, Array]) -> dict[str, NDArray[np.float32]]:
    """Return the float32 tensors that the tensors of a plan stand for, by the names of sites.

    Weights are `weight * weight_scale`, over `input_smoothing` where there is one, int32 biases
    `bias * (input_scale * weight_scale)` as the integer engine adds them; everything else is copied. The scales
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
