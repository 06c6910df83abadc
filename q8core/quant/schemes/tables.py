"""Checks of the tables of keys and values in scheme files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from q8core.documents import shown
from q8core.errors import SchemeError

SCHEME_VERSION = 2


def check_keys(what: str, data: Mapping[str, object], allowed: tuple[str, ...], complete: bool = False) -> None:
    """Raise a SchemeError that names the first unknown key or, if the table must be complete, the first missing one."""
    unknown = [key for key in data if key not in allowed]
    if unknown:
        raise SchemeError(f"unknown {what} {shown(unknown[0])}; allowed are {', '.join(allowed)}")
    missing = [key for key in allowed if key not in data]
    if complete and missing:
        raise SchemeError(f"missing {what} {shown(missing[0])}; needed are {', '.join(allowed)}")


def table(what: str, value: object) -> Mapping[str, Any]:
    """Return `value` if it is a table of keys and values, else raise a SchemeError."""
    if not isinstance(value, Mapping):
        raise SchemeError(f"{what} must be a table of keys and values, not {shown(value)}")
    return cast("Mapping[str, Any]", value)
