"""The supported families of encoders, by ``model_type`` in config.json.

Each file of this folder defines `FAMILIES`: one family, or several that differ only in names. There is no other list.
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
