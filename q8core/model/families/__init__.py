"""The families of encoders that are supported, by ``model_type`` in config.json.

A file of this folder is a family, or several that differ in names alone: it holds `FAMILIES`. There is no other list.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from types import MappingProxyType

from q8core.model.families.family import Family, HeadNames

__all__ = ["FAMILIES", "Family", "HeadNames"]


def _found() -> dict[str, Family]:
    names = sorted(info.name for info in iter_modules(__path__) if info.name != "family")
    families: list[Family] = [each for name in names for each in import_module(f"{__name__}.{name}").FAMILIES]
    return {family.model_type: family for family in families}


FAMILIES: Mapping[str, Family] = MappingProxyType(_found())
"""``model_type`` -> family."""
