"""Migrates schemes of version 1, found in old checkpoints, to the current version; no other file knows version 1.

Version 1 had no version field. Its overrides used the module paths of BERT, it called a linear's input range its
activation, and all its integers had 8 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any

from q8core.documents import shown
from q8core.errors import SchemeError
from q8core.model.sites import EMBEDDING_PROJECTION, HEAD_DENSE, HEAD_OUTPUT, PRODUCTS, TABLES, layer_path
from q8core.quant.quantizer import PER_TOKEN, STATIC, Granularity, Quantizer
from q8core.quant.schemes.tables import SCHEME_VERSION, check_keys, table

_FIELDS = ("enabled", "weight", "activation", "requantize_output", "start_step", "input_grid")
_FLAGS = ("enabled", "requantize_output")
_ALLOWED: dict[str, tuple[object, ...]] = {
    "enabled": (True, False),
    "requantize_output": (True, False),
    "weight": ("per_tensor", "per_channel"),
    "activation": ("ema", "dynamic", "none"),
    "input_grid": ("symmetric", "asymmetric"),
}
_RENAMED = {"pooler": "head_dense", "head": "head_output"}
_MODULES = {
    "word_embeddings": "bert.embeddings.word_embeddings",
    "position_embeddings": "bert.embeddings.position_embeddings",
    "token_type_embeddings": "bert.embeddings.token_type_embeddings",
    "pooler": "bert.pooler.dense",
}
_LAYER_MODULES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "ffn_in": "intermediate.dense",
    "ffn_out": "output.dense",
    PRODUCTS: "attention.self",
}
_OLD_SLOTS = (*_MODULES, *_LAYER_MODULES, "head")
_GRANULARITY: dict[str, Granularity] = {"per_tensor": "tensor", "per_channel": "channel"}
_EARLIER = {PRODUCTS: {"enabled": False, "weight": "per_channel", "activation": "none", "requantize_output": False}}
"""Slots that the first manifests lack, with the settings that were in effect then."""


def migrated(data: Mapping[str, object], layers: int | None, *, head_dense: bool = True) -> Mapping[str, object]:
    """Return a scheme's values migrated to the current version; values that have a version are returned unchanged.

    Args:
        data: plain values.
        layers: number of layers of the scheme's model, needed to resolve the overrides of version 1.
        head_dense: whether the model's head has a dense layer, needed for the same reason.

    Raises:
        SchemeError: if the values are not a scheme of version 1, or overrides cannot be resolved without the model.
    """
    if "version" in data:
        return data
    old = {slot: _slot(slot, value) for slot, value in table("slots", data.get("slots")).items()}
    old = {**{slot: _slot(slot, value) for slot, value in _EARLIER.items()}, **old}
    slots = {_RENAMED.get(slot, slot): _products(was) if slot == PRODUCTS else _site(was) for slot, was in old.items()}
    check_keys("slot", old, _OLD_SLOTS, complete=True)
    slots[EMBEDDING_PROJECTION] = slots["attention_output"]  # no BERT has this linear; it is treated like the others
    overrides = table("overrides", data.get("overrides", {}))
    if overrides and layers is None:
        raise SchemeError("a scheme of version 1 with overrides can be read with its model only; write it anew")
    changes = _overrides(old, overrides, layers or 0, head_dense=head_dense)
    return {**data, "version": SCHEME_VERSION, "slots": slots, "overrides": changes}


def _slot(slot: str, value: object) -> dict[str, Any]:
    check_keys("slot", {slot: None}, _OLD_SLOTS)
    found = {"start_step": 0, "input_grid": "symmetric", **table(f"slot {slot}", value)}
    check_keys(f"slot {slot} key", found, _FIELDS, complete=True)
    _check_values(f"slot {slot}", found)
    return found


def _check_values(what: str, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if value not in _ALLOWED.get(key, (value,)) or (key in _FLAGS and not isinstance(value, bool)):
            raise SchemeError(f"{what}: {key} is {shown(value)}; allowed in version 1: {_shown_values(key)}")


def _shown_values(key: str) -> str:
    return ", ".join(shown(value) for value in _ALLOWED[key])


def _site(old: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `SiteScheme`'s values."""
    start = {"start_step": old["start_step"]}
    if not old["enabled"]:
        return start
    weight = {"weight": asdict(Quantizer(granularity=_GRANULARITY[old["weight"]]))}
    if old["activation"] == "none":
        return {**start, **weight}
    static = Quantizer(rule="ema", grid=old["input_grid"])
    read = {"input": asdict(static if old["activation"] == "ema" else PER_TOKEN)}
    output = {"output": asdict(STATIC)} if old["requantize_output"] else {}
    return {**start, **weight, **read, **output}


def _overrides(
    slots: Mapping[str, Mapping[str, Any]], globs: Mapping[str, Any], layers: int, *, head_dense: bool
) -> dict[str, Any]:
    """Return the changes for each site that a glob of module paths matches."""
    changes: dict[str, Any] = {}
    modules = [each for each in _modules(layers) if head_dense or each[0] != HEAD_DENSE]
    for glob in globs:
        if not any(fnmatchcase(module, glob) for _, _, module in modules):
            raise SchemeError(f"override {glob!r} of version 1 matches no module of a BERT with {layers} layers")
    for path, slot, module in modules:
        matching = [table(f"override {glob!r}", change) for glob, change in globs.items() if fnmatchcase(module, glob)]
        if not matching:
            continue
        found = dict(slots[slot])
        for change in matching:
            check_keys("override key", change, _FIELDS)
            _check_values("override", change)
            found |= change
        changes[path] = _products(found) if slot == PRODUCTS else {**_nothing(), **_site(found)}
    return changes


def _modules(layers: int) -> list[tuple[str, str, str]]:
    """Return path, slot and module of each site of a BERT, including the heads of both tasks."""
    found = [(slot if slot in TABLES else HEAD_DENSE, slot, module) for slot, module in _MODULES.items()]
    found += [(HEAD_OUTPUT, "head", module) for module in ("classifier", "qa_outputs")]
    for layer in range(layers):
        found += [
            (layer_path(layer, slot), slot, f"bert.encoder.layer.{layer}.{module}")
            for slot, module in _LAYER_MODULES.items()
        ]
    return found


def _nothing() -> dict[str, Any]:
    return {"weight": None, "input": None, "output": None}


def _products(old: Mapping[str, Any]) -> dict[str, Any]:
    return {"arithmetic": "relative_u8" if old["enabled"] else "float", "start_step": old["start_step"]}
