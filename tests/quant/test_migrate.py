"""Schemes of version 1, as earlier checkpoints hold them, against version 1's own rules, written down here again."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from q8core.errors import SchemeError
from q8core.model.head import HeadSpec
from q8core.model.spec import EncoderSpec
from q8core.quant import Plan, Quantizer, Scheme, SiteScheme, preset

SPEC = EncoderSpec(2, 32, 4, 64, 100, 64, 2, 1e-12)
HEADS = {"classify": HeadSpec("first", 3, "tanh"), "qa": HeadSpec("every", 2)}

Slot = dict[str, Any]


def slot(weight: str, activation: str, *, enabled: bool = True, output: bool = False, grid: str = "symmetric") -> Slot:
    return {
        "enabled": enabled,
        "weight": weight,
        "activation": activation,
        "requantize_output": output,
        "start_step": 0,
        "input_grid": grid,
    }


def version_1(
    name: str, weight: str, activation: str, output: tuple[str, ...], *, grid: str = "symmetric", products: bool = False
) -> dict[str, Any]:
    """A scheme as the release before wrote it, in its order."""
    table, linear = slot(weight, "none"), slot(weight, activation, grid=grid)
    slots: dict[str, Slot] = {
        "word_embeddings": table,
        "position_embeddings": table,
        "token_type_embeddings": {**table, "enabled": False},
        **{
            projection: {**linear, "requantize_output": projection in output}
            for projection in ("query", "key", "value")
        },
        **dict.fromkeys(("attention_output", "ffn_in", "ffn_out", "pooler", "head"), linear),
        "attention_products": {**table, "enabled": products},
    }
    rest = {"ema_decay": 0.9999, "ema_debias": True, "ignore_padding": True, "share_qkv_input": True, "overrides": {}}
    return json.loads(json.dumps({"name": name, "slots": slots, **rest}))


QK, QKV = ("query", "key"), ("query", "key", "value")
PAPER = version_1("q8bert-paper", "per_tensor", "ema", QK)
PAPER |= {"ema_debias": False, "ignore_padding": False, "share_qkv_input": False}
PAPER["slots"]["head"]["start_step"] = 200
WRITTEN = {
    "q8bert": version_1("q8bert", "per_channel", "ema", QK, grid="asymmetric"),
    "q8bert-attention": version_1("q8bert-attention", "per_channel", "ema", QKV, grid="asymmetric", products=True),
    "q8bert-paper": PAPER,
    "static": version_1("static", "per_channel", "ema", QK, grid="asymmetric"),
    "static-attention": version_1("static-attention", "per_channel", "ema", QKV, grid="asymmetric", products=True),
    "dynamic": version_1("dynamic", "per_channel", "dynamic", ()),
}


def written(name: str = "q8bert", overrides: Mapping[str, object] | None = None) -> dict[str, Any]:
    return json.loads(json.dumps({**WRITTEN[name], "overrides": overrides or {}}))


@pytest.mark.parametrize("name", WRITTEN)
def test_earlier_presets_are_todays(name: str) -> None:
    assert Scheme.from_dict(written(name)) == preset(name).smoothed(0)
    assert Scheme.from_dict(written(name), layers=2) == preset(name).smoothed(0)


def test_first_manifests_knew_neither_products_nor_grids() -> None:
    old = written("q8bert-paper")
    del old["slots"]["attention_products"]
    for values in old["slots"].values():
        del values["input_grid"]
    assert Scheme.from_dict(old) == preset("q8bert-paper")
    old["slots"]["value"]["requantize_output"] = True  # nothing but quantized products reads it
    with pytest.raises(SchemeError, match="the output of value is quantized"):
        Scheme.from_dict(old)


def test_a_manifest_with_grids_and_without_products_is_read_too() -> None:
    old = written("q8bert")
    del old["slots"]["attention_products"]
    assert Scheme.from_dict(old) == preset("q8bert")


def test_the_data_is_left_alone() -> None:
    old = written("q8bert", {"classifier": {"enabled": False}})
    before = copy.deepcopy(old)
    Scheme.from_dict(old, layers=2)
    assert old == before


MODULES = {
    "word_embeddings": ("word_embeddings", "bert.embeddings.word_embeddings"),
    "position_embeddings": ("position_embeddings", "bert.embeddings.position_embeddings"),
    "token_type_embeddings": ("token_type_embeddings", "bert.embeddings.token_type_embeddings"),
    **{
        f"layers.{layer}.{slot}": (slot, f"bert.encoder.layer.{layer}.{module}")
        for layer in range(2)
        for slot, module in {
            "query": "attention.self.query",
            "key": "attention.self.key",
            "value": "attention.self.value",
            "attention_products": "attention.self",
            "attention_output": "attention.output.dense",
            "ffn_in": "intermediate.dense",
            "ffn_out": "output.dense",
        }.items()
    },
    "head.dense": ("pooler", "bert.pooler.dense"),
    "head.output": ("head", "classifier"),
}
"""Of a classifier: site -> version 1's slot and module."""
QA_MODULES = {site: found for site, found in MODULES.items() if not site.startswith("head.")}
QA_MODULES |= {"head.output": ("head", "qa_outputs")}


def expected(old: Mapping[str, Any], name: str, module: str) -> SiteScheme:
    """What version 1 said of a module, in today's words."""
    found = dict(old["slots"][name])
    for glob, changes in old["overrides"].items():
        if fnmatchcase(module, glob):
            found |= changes
    start = found["start_step"]
    if name == "attention_products":
        return SiteScheme(arithmetic="relative_u8" if found["enabled"] else "float", start_step=start)
    if not found["enabled"]:
        return SiteScheme(start_step=start)
    weight = Quantizer(granularity={"per_tensor": "tensor", "per_channel": "channel"}[found["weight"]])
    inputs = {
        "none": None,
        "dynamic": Quantizer(granularity="token"),
        "ema": Quantizer(rule="ema", grid=found["input_grid"]),
    }
    output = Quantizer(rule="ema") if found["requantize_output"] else None
    return SiteScheme(weight, inputs[found["activation"]], output, start_step=start)


def check(old: Mapping[str, Any]) -> None:
    for kind, modules in (("classify", MODULES), ("qa", QA_MODULES)):
        scheme = Scheme.from_dict(old, layers=2, head_dense=kind == "classify")
        plan = Plan.of(SPEC, HEADS[kind], scheme)
        found = {path: site.scheme for path, site in plan.sites.items() if path in modules}
        assert found == {path: expected(old, *names) for path, names in modules.items()}
        assert Scheme.from_dict(json.loads(json.dumps(scheme.to_dict()))) == scheme


OFF = {"enabled": False}


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"bert.encoder.layer.1.*": {"weight": "per_tensor"}},
        {"bert.encoder.layer.1.*": OFF},
        {"*.query": {"start_step": 7}, "bert.encoder.layer.0.*": {"input_grid": "symmetric"}},
        {"*.layer.?.output.dense": OFF, "*output.dense": {"weight": "per_tensor"}},
        {"*.intermediate.dense": {"activation": "dynamic", "input_grid": "symmetric"}},
        {"bert.encoder.layer.0.attention.*": {"weight": "per_tensor"}},
        {"bert.embeddings.token_type_embeddings": {"enabled": True}, "*.word_embeddings": OFF},
        {"bert.encoder.*": {"weight": "per_tensor"}, "*.layer.1.*": {"weight": "per_channel"}},
        {"*.[qk]*": {"requantize_output": False}},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["q8bert", "q8bert-paper"])
def test_overrides_speak_of_the_same_modules(name: str, overrides: dict[str, dict[str, object]]) -> None:
    check(written(name, overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        {"*": {"start_step": 3}},
        {"bert.*": {"weight": "per_tensor"}},
        {"*.dense": OFF},
        {"bert.[ep]*": OFF, "*.layer.1.*dense": {"enabled": True}},
    ],
    ids=str,
)
def test_overrides_that_also_match_a_pooler_serve_models_without_one(overrides: dict[str, dict[str, object]]) -> None:
    """A model for question answering has none; the glob matches other modules of it, so it was no mistake."""
    check(written("dynamic", overrides))


@pytest.mark.parametrize("kind", ["classify", "qa"])
def test_overrides_of_either_head(kind: str) -> None:
    name = {"classify": "classifier", "qa": "qa_outputs"}[kind]
    scheme = Scheme.from_dict(written("q8bert", {name: OFF}), layers=2)
    plan = Plan.of(SPEC, HEADS[kind], scheme)
    assert [path for path, site in plan.sites.items() if site.site.kind == "linear" and site.kind == "float"] == [
        "head.output"
    ]
    without_pooler = Scheme.from_dict(written("q8bert", {"bert.pooler.dense": OFF}), layers=2)
    assert Plan.of(SPEC, HEADS["classify"], without_pooler).sites["head.dense"].kind == "float"


def test_overrides_choose_the_layers_of_quantized_products() -> None:
    path = "bert.encoder.layer.1.attention.self"
    without = {path: OFF, f"{path}.value": {"requantize_output": False}}
    check(written("q8bert-attention", without))
    added = {path: {"enabled": True}, f"{path}.value": {"requantize_output": True}}
    check(written("q8bert", added))
    for overrides, arithmetic in ((without, ("relative_u8", "float")), (added, ("float", "relative_u8"))):
        name = "q8bert-attention" if overrides is without else "q8bert"
        plan = Plan.of(SPEC, HEADS["qa"], Scheme.from_dict(written(name, overrides), layers=2))
        assert tuple(plan.of_layer(layer, "attention_products").arithmetic for layer in range(2)) == arithmetic


def test_operands_that_do_not_fit_are_refused_as_ever() -> None:
    old = written("q8bert-attention", {"bert.encoder.layer.1.attention.self.key": OFF})
    with pytest.raises(SchemeError, match=r"layers\.1: attention_products in integers need .* but key has none"):
        Plan.of(SPEC, HEADS["classify"], Scheme.from_dict(old, layers=2))


CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "enabled": st.booleans(),
        "weight": st.sampled_from(["per_tensor", "per_channel"]),
        "start_step": st.integers(0, 9),
        "input_grid": st.sampled_from(["symmetric", "asymmetric"]),
    },
)
GLOBS = st.sampled_from(
    [
        "bert.encoder.*",
        "*.layer.0.*",
        "*.layer.1.intermediate*",
        "*.query",
        "*.self.[kv]*",
        "bert.embeddings.*",
        "*.attention.output.dense",
        "*.layer.[01].output.dense",
    ]
)


@settings(max_examples=60, deadline=None)
@given(overrides=st.dictionaries(GLOBS, CHANGES, max_size=4))
def test_any_overrides_mean_what_they_meant(overrides: dict[str, dict[str, object]]) -> None:
    """Whatever is quantized, and nothing that version 1 refused: products have what they need, or are float."""
    old = written("q8bert", overrides)
    for projection in ("query", "key", "value"):
        old["slots"][projection]["requantize_output"] = False
    old["overrides"] = {**old["overrides"], "*.attention.self": OFF}  # the last one wins
    check(old)


@pytest.mark.parametrize("name", ["q8bert", "dynamic"])
def test_overrides_change_nothing_about_the_need_for_ranges(name: str) -> None:
    """A dynamic scheme with other weights somewhere needs no training; it does with a static input."""
    for overrides, static in (
        ({"classifier": {"weight": "per_tensor"}}, False),
        ({"classifier": OFF}, False),
        ({"classifier": {"activation": "ema"}}, True),
    ):
        scheme = Scheme.from_dict(written(name, overrides), layers=2)
        assert scheme.needs_ranges == (static or name == "q8bert")


def test_overrides_need_their_model() -> None:
    with pytest.raises(SchemeError, match="with overrides can be read with its model only"):
        Scheme.from_dict(written("q8bert", {"classifier": OFF}))


Path = tuple[str, ...]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("extra",), 1, "extra is unknown; allowed here: name, slots"),
        (("name",), None, "name is null"),
        (("slots",), [1], "slots must be a table"),
        (("slots", "querry"), WRITTEN["q8bert"]["slots"]["query"], "unknown slot 'querry'"),
        (("slots", "head_dense"), WRITTEN["q8bert"]["slots"]["query"], "unknown slot 'head_dense'"),
        (("slots", "query"), 1, "slot query must be a table"),
        (("slots", "query", "bits"), 4, "unknown slot query key 'bits'; allowed are enabled, weight"),
        (("slots", "query", "weight"), "per_row", "weight is 'per_row'"),
        (("slots", "query", "weight"), [], r"weight is \[\]"),
        (("slots", "query", "activation"), "max", "activation is 'max'"),
        (("slots", "query", "input_grid"), "affine", "input.grid is 'affine'"),
        (("slots", "query", "enabled"), "no", "enabled is 'no'"),
        (("slots", "query", "requantize_output"), "no", "requantize_output is 'no'"),
        (("slots", "query", "start_step"), -1, "start_step is -1"),
        (("slots", "query", "start_step"), "3", "start_step is '3'"),
        (("slots", "query", "activation"), "none", "weight and input are quantized together"),
        (("slots", "word_embeddings", "activation"), "ema", "only linears have an input"),
        (("slots", "pooler", "requantize_output"), True, "of query, key and value"),
        (("slots", "value", "requantize_output"), True, "the output of value is quantized"),
        (("overrides",), {"classifier": {"enabld": False}}, "unknown override key 'enabld'; allowed are enabled"),
        (("overrides",), {"classifier": {"weight": "per_row"}}, "weight is 'per_row'"),
        (("overrides",), {"classifier": 3}, "override 'classifier' must be a table"),
        (("overrides",), [3], "overrides must be a table"),
        (("overrides",), {"typo": OFF}, "'typo'"),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else None,
)
def test_what_is_wrong_is_named(path: Path, value: object, message: str) -> None:
    """What version 1 refused is refused: an override that matches nothing at the latest by the plan."""
    old = written()
    place = old
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(SchemeError, match=message):
        Plan.of(SPEC, HEADS["classify"], Scheme.from_dict(old, layers=2))


@pytest.mark.parametrize("key", ["enabled", "weight", "activation", "requantize_output"])
def test_missing_keys_are_named(key: str) -> None:
    old = written()
    del old["slots"]["query"][key]
    with pytest.raises(SchemeError, match=f"missing slot query key '{key}'"):
        Scheme.from_dict(old)
    old = written()
    del old["slots"]["pooler"]
    with pytest.raises(SchemeError, match="missing slot 'pooler'"):
        Scheme.from_dict(old)


@pytest.mark.parametrize("version", [0, 1, 3, "2", None, True])
def test_other_versions_are_refused(version: object) -> None:
    """Version 1 had no version: data with any but today's is of no release."""
    with pytest.raises(SchemeError, match="version is "):
        Scheme.from_dict({**preset("q8bert").to_dict(), "version": version})
