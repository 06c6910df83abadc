"""Schemes: which quantizers a model has, as data; the presets are files in ``presets``."""

from __future__ import annotations

from q8core.quant.schemes.files import PRESETS, find_scheme, preset
from q8core.quant.schemes.scheme import SLOTS, Scheme, SiteScheme

__all__ = ["PRESETS", "SLOTS", "Scheme", "SiteScheme", "find_scheme", "preset"]
