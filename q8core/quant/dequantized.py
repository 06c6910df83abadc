"""Dequantizes the tensors of a quantized model's plan to float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from q8core.arrays import Array
from q8core.quant.ops.stored import dequantize, dequantize_bias
from q8core.quant.plan import Plan, SitePlan
from q8core.quant.weights import each_row, integers


class DequantizedTensors(Mapping[str, NDArray[np.float32]]):
    """A plan's tensors dequantized to float32, by the names of sites.

    Weights become `weight * weight_scale`, divided by `input_smoothing` if there is one. int32 biases become
    `bias * (input_scale * weight_scale)`, as the integer engine adds them. Everything else is copied, and the scales
    themselves are left out.

    Each access computes the tensor again: whoever packs them one by one needs no second copy of the model.

    Args:
        plan: the quantized model's plan.
        tensors: its tensors.
    """

    def __init__(self, plan: Plan, tensors: Mapping[str, Array]) -> None:
        self._tensors = tensors
        self._sites = {name: site for site in plan.sites.values() for name in site.site.float_tensors}

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return _dequantized(self._sites[name], name, self._tensors)

    def __contains__(self, name: object) -> bool:
        # Mapping's own would compute the tensor to find out
        return name in self._sites

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)


def _dequantized(site: SitePlan, name: str, tensors: Mapping[str, Array]) -> NDArray[np.float32]:
    tensor = tensors[name]
    if site.weight is None or (site.kind == "dynamic" and name.endswith(".bias")):
        return tensor.astype(np.float32)
    scale = each_row(tensors[f"{site.path}.weight_scale"], site.site.shape[0])
    if name.endswith(".bias"):
        return dequantize_bias(tensor, tensors[f"{site.path}.input_scale"], scale)
    q = integers(site, lambda leaf: tensor if leaf == "weight" else tensors[f"{site.path}.{leaf}"])
    weight = dequantize(q, scale.reshape(-1, 1))
    return np.divide(weight, tensors[f"{site.path}.input_smoothing"], out=weight) if site.smooths else weight
