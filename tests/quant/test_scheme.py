from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace

import pytest

from q8core.errors import SchemeError
from q8core.quant import PRESETS, SLOTS, Scheme, SlotScheme, preset


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_survive_json(name: str) -> None:
    scheme = preset(name)
    assert scheme.name == name
    assert Scheme.from_dict(json.loads(json.dumps(scheme.to_dict()))) == scheme


def test_overrides_survive_json() -> None:
    scheme = replace(preset("q8bert"), overrides={"classifier": {"enabled": False}})
    assert Scheme.from_dict(json.loads(json.dumps(scheme.to_dict()))) == scheme


def test_paper_preset_is_the_paper() -> None:
    """Per tensor, EMA 0.9999 from the first batch, padding counted, own input ranges, head from step 200."""
    scheme = preset("q8bert-paper")
    assert (scheme.ema_decay, scheme.ema_debias) == (0.9999, False)
    assert (scheme.ignore_padding, scheme.share_qkv_input) == (False, False)
    assert {slot: s.start_step for slot, s in scheme.slots.items() if s.start_step} == {"head": 200}
    unquantized = {slot for slot, s in scheme.slots.items() if not s.enabled}
    assert unquantized == {"token_type_embeddings", "attention_products"}
    assert {slot for slot, s in scheme.slots.items() if s.requantize_output} == {"query", "key"}
    assert {s.weight for s in scheme.slots.values()} == {"per_tensor"}


def test_default_preset_mends_the_paper() -> None:
    scheme = preset("q8bert")
    assert scheme.ema_debias
    assert scheme.ignore_padding
    assert scheme.share_qkv_input
    assert {s.weight for s in scheme.slots.values()} == {"per_channel"}
    assert all(s.start_step == 0 for s in scheme.slots.values())
    assert tuple(scheme.slots) == SLOTS


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(SchemeError, match=r"q8bert, q8bert-attention, q8bert-paper, .*; found 'q8brt'"):
        preset("q8brt")


def data() -> dict[str, dict[str, dict[str, object]]]:
    return json.loads(json.dumps(preset("q8bert").to_dict()))


def test_misspelled_keys_are_errors() -> None:
    """The original swallowed them: a typo was an unquantized layer without a warning."""
    scheme = data() | {"ema_decai": 0.9}
    with pytest.raises(SchemeError, match=r"unknown scheme key 'ema_decai'; allowed are name, slots, ema_decay"):
        Scheme.from_dict(scheme)
    slots = data()
    slots["slots"]["querry"] = slots["slots"].pop("query")
    with pytest.raises(SchemeError, match="unknown slot 'querry'; allowed are word_embeddings"):
        Scheme.from_dict(slots)
    fields = data()
    fields["slots"]["key"]["wieght"] = "per_tensor"
    with pytest.raises(SchemeError, match=r"unknown slot 'key' key 'wieght'; allowed are enabled, weight"):
        Scheme.from_dict(fields)


def test_missing_keys_are_errors() -> None:
    scheme = data()
    del scheme["slots"]["pooler"]
    with pytest.raises(SchemeError, match="missing slot 'pooler'"):
        Scheme.from_dict(scheme)
    with pytest.raises(SchemeError, match="missing scheme key 'slots'"):
        Scheme.from_dict({"name": "mine"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": "per_row"}, "weight must be one of per_tensor, per_channel; found 'per_row'"),
        ({"activation": "max"}, "activation must be one of ema, dynamic, none; found 'max'"),
        ({"enabled": "yes"}, "enabled must be true or false, not 'yes'"),
        ({"start_step": -1}, "start_step must be an integer of at least 0, not -1"),
        ({"start_step": True}, "start_step must be an integer of at least 0, not true"),
        ({"requantize_output": True, "activation": "dynamic"}, "requantize_output needs activation 'ema'"),
    ],
)
def test_slot_values_are_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        SlotScheme(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("slot", "scheme", "message"),
    [
        ("query", SlotScheme(activation="none"), "activation of slot query must be one of ema, dynamic"),
        ("word_embeddings", SlotScheme(), "activation of slot word_embeddings must be one of none"),
        ("pooler", SlotScheme(requantize_output=True), "for the slots query, key and value, not for pooler"),
        ("attention_products", SlotScheme(), "activation of slot attention_products must be one of none; found 'ema'"),
    ],
)
def test_slots_are_checked_against_their_place(slot: str, scheme: SlotScheme, message: str) -> None:
    base = preset("q8bert")
    with pytest.raises(SchemeError, match=message):
        replace(base, slots={**base.slots, slot: scheme})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ema_decay": 1.0}, "ema_decay must be at least 0 and less than 1, not 1.0"),
        ({"ema_decay": "0.9"}, "ema_decay must be"),
        ({"ema_debias": 1}, "ema_debias must be true or false, not 1"),
        ({"name": ""}, "not empty"),
        ({"overrides": {"*": {"bits": 8}}}, "unknown override '\\*' key 'bits'"),
    ],
)
def test_scheme_values_are_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        replace(preset("q8bert"), **changes)  # type: ignore[arg-type]


def test_later_overrides_win() -> None:
    overrides = {"bert.encoder.layer.0.*": {"weight": "per_tensor"}, "*.query": {"weight": "per_channel"}}
    scheme = replace(preset("q8bert"), overrides=overrides)
    paths = {slot: f"bert.encoder.layer.0.attention.self.{slot}" for slot in ("query", "key")}
    assert scheme.resolve("query", paths["query"]).weight == "per_channel"
    assert scheme.resolve("key", paths["key"]).weight == "per_tensor"
    assert scheme.resolve("key", "bert.encoder.layer.1.attention.self.key").weight == "per_channel"


def test_overrides_are_checked_where_they_apply() -> None:
    scheme = replace(preset("q8bert"), overrides={"classifier": {"requantize_output": True}})
    with pytest.raises(SchemeError, match="not for head at classifier"):
        scheme.resolve("head", "classifier")


def attention_slots(**changes: SlotScheme) -> Scheme:
    base = preset("q8bert-attention")
    return replace(base, slots={**base.slots, **changes})


@pytest.mark.parametrize("slot", ["query", "key", "value"])
@pytest.mark.parametrize("change", [{"enabled": False}, {"requantize_output": False}])
def test_quantized_products_need_integer_operands(slot: str, change: dict[str, bool]) -> None:
    operand = replace(preset("q8bert-attention").slots[slot], **change)
    with pytest.raises(SchemeError, match=rf"attention_products need requantized query, key and value, but {slot} is"):
        attention_slots(**{slot: operand})
    path = "bert.encoder.layer.1.attention.self"
    scheme = replace(preset("q8bert-attention"), overrides={f"{path}.{slot}": change})
    assert scheme.quantizes_products("bert.encoder.layer.0.attention.self")
    with pytest.raises(SchemeError, match=rf"attention_products at {path} need .* but {slot} is not"):
        scheme.quantizes_products(path)


def test_a_requantized_value_needs_quantized_products() -> None:
    """Nothing else reads an integer value: the tensor `value.output_scale` says that the products are quantized."""
    with pytest.raises(SchemeError, match="the value is requantized for quantized attention_products"):
        attention_slots(attention_products=SlotScheme(enabled=False, activation="none"))


def test_overrides_choose_the_layers_of_quantized_products() -> None:
    path = "bert.encoder.layer.{}.attention.self"
    without = {path.format(1): {"enabled": False}, path.format(1) + ".value": {"requantize_output": False}}
    scheme = replace(preset("q8bert-attention"), overrides=without)
    assert [scheme.quantizes_products(path.format(layer)) for layer in (0, 1)] == [True, False]
    added = {path.format(1): {"enabled": True}, path.format(1) + ".value": {"requantize_output": True}}
    scheme = replace(preset("q8bert"), overrides=added)
    assert [scheme.quantizes_products(path.format(layer)) for layer in (0, 1)] == [False, True]


def test_attention_presets_change_nothing_else() -> None:
    for name, base in (("q8bert-attention", "q8bert"), ("static-attention", "static")):
        ours, theirs = preset(name).slots, preset(base).slots
        assert {slot for slot in SLOTS if ours[slot] != theirs[slot]} == {"value", "attention_products"}
        assert ours["value"] == replace(theirs["value"], requantize_output=True)


def test_a_scheme_from_before_quantized_products_has_none() -> None:
    old = data()
    del old["slots"]["attention_products"]
    assert Scheme.from_dict(old) == preset("q8bert")
    old["slots"]["value"]["requantize_output"] = True
    with pytest.raises(SchemeError, match="the value is requantized"):
        Scheme.from_dict(old)


def test_schemes_do_not_change() -> None:
    scheme = preset("q8bert")
    with pytest.raises(FrozenInstanceError):
        scheme.ema_decay = 0.5  # type: ignore[misc]
    slots = dict(scheme.slots)
    copy = replace(scheme, slots=slots)
    slots.clear()
    assert tuple(copy.slots) == SLOTS
