"""The quantization core: schemes, plans, the integer arithmetic, quantization-aware layers, prepare and convert.

network -> ``prepare(network, Plan.of(spec, head, preset("q8bert")))`` -> train or calibrate -> ``convert`` -> tensors.
This package exports only descriptions and imports no torch; training code imports from ``q8core.quant.qat``.
"""

from __future__ import annotations

from q8core.quant.plan import Plan
from q8core.quant.quantizer import Quantizer
from q8core.quant.schemes import PRESETS, SLOTS, Scheme, SiteScheme, find_scheme, preset

__all__ = ["PRESETS", "SLOTS", "Plan", "Quantizer", "Scheme", "SiteScheme", "find_scheme", "preset"]
