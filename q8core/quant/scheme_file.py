"""A user's own scheme, read from a small file: what a preset does, with changes.

base = "q8bert"                      # a preset; without it the file is a whole scheme, as manifests hold it
name = "per-tensor"                  # the file's name if left out
ema_decay = 0.99                     # any field of `Scheme`
linears = { weight = "per_tensor" }  # fields of `SlotScheme` for all linear slots, and `embeddings` for all tables
slots.head = { start_step = 200 }    # for one slot
overrides."bert.encoder.layer.0.*" = { enabled = false }   # for the modules that match a glob
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from q8core.documents import read_json, read_toml, shown
from q8core.errors import SchemeError
from q8core.quant.scheme import EMBEDDING_SLOTS, LINEAR_SLOTS, PRESETS, SLOTS, Scheme, preset

_GROUPS = {"linears": LINEAR_SLOTS, "embeddings": EMBEDDING_SLOTS}
_ENDINGS = (".toml", ".json")


def find_scheme(name: str) -> Scheme:
    """Return the preset of that name, or the scheme in the file of that name (.toml or .json).

    Raises:
        SchemeError: if there is neither, or the file is not a scheme; says what is allowed.
    """
    if name in PRESETS:
        return preset(name)
    if name.endswith(_ENDINGS):
        return read_scheme(Path(name))
    raise SchemeError(
        f"no scheme {shown(name)}; allowed are {', '.join(PRESETS)}, or a file that ends in .toml or .json"
    )


def read_scheme(path: Path) -> Scheme:
    """Return the scheme in a file.

    Raises:
        SchemeError: if the file cannot be read, has an unknown key or value, or takes the name of a preset.
    """
    data = _parse(path)
    try:
        scheme = Scheme.from_dict(_with_base(data, path.stem) if "base" in data else data)
    except SchemeError as error:
        raise SchemeError(f"{path}: {error}") from None
    if scheme.name in PRESETS and scheme != PRESETS[scheme.name]:
        raise SchemeError(
            f"{path}: {shown(scheme.name)} is the name of a preset that does something else; choose another"
        )
    return scheme


def _parse(path: Path) -> dict[str, Any]:
    if path.suffix == ".toml":
        return read_toml(path, SchemeError)
    data = read_json(path, SchemeError)
    if not isinstance(data, dict):
        raise SchemeError(f"{path} must hold a table of keys and values, not a {type(data).__name__}")
    return cast("dict[str, Any]", data)


def _with_base(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the whole scheme that the changes in `data` make of its base."""
    if data["base"] not in tuple(PRESETS):  # whatever the file holds: a list has no hash
        raise SchemeError(f"base must be one of {', '.join(PRESETS)}; found {shown(data['base'])}")
    whole: dict[str, Any] = preset(data["base"]).to_dict()
    slots: dict[str, dict[str, object]] = whole["slots"]
    for group, members in _GROUPS.items():
        for slot in members:
            slots[slot] |= _table(group, data.get(group, {}))
    for slot, changes in _table("slots", data.get("slots", {})).items():
        if slot not in slots:
            raise SchemeError(f"unknown slot {shown(slot)}; allowed are {', '.join(SLOTS)}")
        slots[slot] |= _table(f"slot {shown(slot)}", changes)
    overrides = {**whole["overrides"], **_table("overrides", data.get("overrides", {}))}
    rest = {key: value for key, value in data.items() if key not in ("base", "slots", "overrides", *_GROUPS)}
    return {**whole, "name": name, **rest, "overrides": overrides}


def _table(what: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SchemeError(f"{what} must be a table of keys and values, not {shown(value)}")
    return value
