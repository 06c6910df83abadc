"""Schemes in small files: the presets, and users' own schemes, which change a preset.

base = "q8bert"                          # a preset; without it the file is a complete scheme, as in manifests
name = "four-bits"                       # the file's name if left out
ema_decay = 0.99                         # any field of `Scheme`
tables.weight = { granularity = "tensor" }   # fields of `SiteScheme` for all tables, and `linears` for all linears
slots.ffn_in.weight = { bits = 4 }       # for one slot; fields left out keep their values
slots.head_output = "float"              # a slot that is not quantized
overrides."layers.0.*" = "float"         # for the sites whose path matches a glob
overrides."layers.upper.*".weight.bits = 4   # for the second half of the layers; `lower` is the first
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, cast

from q8core.documents import read_json, read_toml, shown, validated
from q8core.errors import SchemeError
from q8core.model.sites import TABLES
from q8core.quant.schemes.scheme import LINEAR_SLOTS, SLOTS, Scheme, SiteScheme, changed
from q8core.quant.schemes.tables import SCHEME_VERSION, check_keys, table

_GROUPS = {"tables": TABLES, "linears": LINEAR_SLOTS}
_ENDINGS = (".toml", ".json")
_FOLDER = Path(__file__).with_name("presets")
_ORDER = (
    *("q8bert", "q8bert-smooth", "q8bert-attention", "q8bert-paper"),
    *("qbert-4", "qbert-3", "qbert-2", "qbert-mp", "kdlsq-4", "kdlsq-2", "ternary", "binary", "binary-split", "mkq"),
    *("static", "static-attention", "dynamic"),
)


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


def preset(name: str) -> Scheme:
    """Return the scheme of that name.

    `q8bert` is the default for training, `q8bert-paper` follows the paper's rules exactly, `static` and
    `dynamic` quantize without training; `q8bert-attention` and `static-attention` also quantize the attention
    products. The others have weights of few bits: `qbert-` (Q-BERT), `kdlsq-` (KDLSQ-BERT), `ternary` (TernaryBERT),
    `binary` and `binary-split` (the signs of BinaryBERT) and `mkq` (4 bits in half of the layers, as MKQ-BERT).

    Raises:
        SchemeError: if there is no such preset; the message names the presets.
    """
    if name not in PRESETS:
        raise SchemeError(f"preset is {shown(name)}; allowed: {', '.join(PRESETS)}")
    return PRESETS[name]


def read_scheme(path: Path) -> Scheme:
    """Return the scheme in a file.

    Raises:
        SchemeError: if the file cannot be read, has an unknown key or value, or takes the name of a preset.
    """
    data = _parse(path)
    try:
        scheme = _with_base(data, path.stem) if "base" in data else Scheme.from_dict(data)
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


def _with_base(data: Mapping[str, Any], name: str) -> Scheme:
    """Return the complete scheme: the base with the changes in `data` applied."""
    if data["base"] not in tuple(PRESETS):  # a tuple, because a file may give any type, and a list has no hash
        raise SchemeError(f"base must be one of {', '.join(PRESETS)}; found {shown(data['base'])}")
    return _built(preset(data["base"]), data, name)


def _built(base: Scheme, data: Mapping[str, Any], name: str) -> Scheme:
    slots = dict(base.slots)
    for group, members in _GROUPS.items():
        if group in data:
            slots |= {slot: changed(slots[slot], data[group], group) for slot in members}
    changes = table("slots", data.get("slots", {}))
    check_keys("slot", changes, SLOTS)
    slots |= {slot: changed(slots[slot], change, f"slot {slot}") for slot, change in changes.items()}
    overrides = {**base.overrides, **table("overrides", data.get("overrides", {}))}
    rest = {key: value for key, value in data.items() if key not in ("base", "slots", "overrides", *_GROUPS)}
    if rest.pop("version", SCHEME_VERSION) != SCHEME_VERSION:
        raise SchemeError(f"version is {shown(data['version'])}; this release reads {SCHEME_VERSION}")
    own = {key: value for key, value in asdict(base).items() if key not in ("slots", "overrides")}
    plain = {slot: asdict(scheme) for slot, scheme in slots.items()}
    return validated(
        Scheme, {**own, "name": name, **rest, "slots": plain, "overrides": overrides}, "scheme", SchemeError
    )


class _Presets(Mapping[str, Scheme]):
    """Reads a preset's file when it is asked for: a process that only runs a model needs none of them."""

    def __getitem__(self, name: str) -> Scheme:
        if name not in _ORDER:
            raise KeyError(name)
        return _read_preset(name)

    def __iter__(self) -> Iterator[str]:
        return iter(_ORDER)

    def __len__(self) -> int:
        return len(_ORDER)


@cache
def _read_preset(name: str) -> Scheme:
    nothing = Scheme("float", {slot: SiteScheme() for slot in SLOTS})
    return _built(nothing, read_toml(_FOLDER / f"{name}.toml", SchemeError), name)


PRESETS: Mapping[str, Scheme] = _Presets()
"""The named schemes."""
