from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, asdict, replace
from typing import Any

import pytest

from q8core.errors import SchemeError
from q8core.model.sites import TABLES
from q8core.quant import PRESETS, SLOTS, Quantizer, Scheme, SiteScheme, preset
from q8core.quant.quantizer import PER_CHANNEL, PER_TOKEN, STATIC
from q8core.quant.schemes.scheme import LINEAR_SLOTS

PRODUCTS = "attention_products"


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_survive_json(name: str) -> None:
    scheme = preset(name)
    assert scheme.name == name
    assert Scheme.from_dict(json.loads(json.dumps(scheme.to_dict()))) == scheme


@pytest.mark.parametrize(
    "overrides",
    [
        {"head.output": "float"},
        {"layers.0.query": {"output": None, "weight": {"bits": 3}}, "*": {"start_step": 1}},
        {"layers.0.*": "float", "layers.0.ffn_in": {"weight": {}, "input": {"granularity": "token", "rule": "max"}}},
    ],
    ids=str,
)
def test_overrides_survive_json(overrides: dict[str, Any]) -> None:
    scheme = replace(preset("q8bert"), overrides=overrides)
    read = Scheme.from_dict(json.loads(json.dumps(scheme.to_dict())))
    assert read == scheme
    assert list(read.overrides) == list(overrides)  # later ones win


def test_paper_preset_is_the_paper() -> None:
    """Per tensor, EMA 0.9999 from the first batch, padding counted, own input ranges, head from step 200."""
    scheme = preset("q8bert-paper")
    assert (scheme.ema_decay, scheme.ema_debias) == (0.9999, False)
    assert (scheme.ignore_padding, scheme.share_qkv_input) == (False, False)
    assert {slot: s.start_step for slot, s in scheme.slots.items() if s.start_step} == {"head_output": 200}
    unquantized = {slot for slot, s in scheme.slots.items() if not s.quantizes}
    assert unquantized == {"token_type_embeddings", PRODUCTS}
    assert {slot for slot, s in scheme.slots.items() if s.output} == {"query", "key"}
    assert {s.weight for s in scheme.slots.values()} == {None, Quantizer(8, "symmetric", "tensor", "max")}
    inputs = {scheme.slots[slot].input for slot in LINEAR_SLOTS} | {scheme.slots[s].output for s in ("query", "key")}
    assert inputs == {Quantizer(8, "symmetric", "tensor", "ema")}


def test_default_preset_mends_the_paper() -> None:
    scheme = preset("q8bert")
    assert scheme.ema_debias
    assert scheme.ignore_padding
    assert scheme.share_qkv_input
    assert {s.weight for s in scheme.slots.values()} == {None, Quantizer(granularity="channel")}
    assert {scheme.slots[slot].input for slot in LINEAR_SLOTS} == {Quantizer(grid="asymmetric", rule="ema")}
    assert {slot for slot, s in scheme.slots.items() if not s.quantizes} == {"token_type_embeddings", PRODUCTS}
    assert all(s.start_step == 0 for s in scheme.slots.values())
    assert tuple(scheme.slots) == SLOTS


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(SchemeError, match=r"'q8brt'; allowed: q8bert, q8bert-smooth, q8bert-attention, .*"):
        preset("q8brt")


def data() -> dict[str, Any]:
    return json.loads(json.dumps(preset("q8bert").to_dict()))


def test_misspelled_keys_are_errors() -> None:
    """The original swallowed them: a typo was an unquantized layer without a warning."""
    scheme = data() | {"ema_decai": 0.9}
    with pytest.raises(SchemeError, match=r"ema_decai is unknown; allowed here: name, slots, ema_decay"):
        Scheme.from_dict(scheme)
    slots = data()
    slots["slots"]["querry"] = slots["slots"].pop("query")
    with pytest.raises(SchemeError, match="unknown slot 'querry'; allowed are word_embeddings"):
        Scheme.from_dict(slots)
    fields = data()
    fields["slots"]["key"]["wieght"] = {}
    with pytest.raises(SchemeError, match=r"slots\.key\.wieght is unknown; allowed here: weight, input, output"):
        Scheme.from_dict(fields)
    nested = data()
    nested["slots"]["key"]["weight"]["bitz"] = 4
    with pytest.raises(SchemeError, match=r"slots\.key\.weight\.bitz is unknown; allowed here: bits, grid"):
        Scheme.from_dict(nested)


def test_missing_keys_are_errors() -> None:
    scheme = data()
    del scheme["slots"]["head_dense"]
    with pytest.raises(SchemeError, match="missing slot 'head_dense'"):
        Scheme.from_dict(scheme)
    for key in ("slots", "name"):
        with pytest.raises(SchemeError, match=f"{key} is missing"):
            Scheme.from_dict({name: value for name, value in data().items() if name != key})


def with_slot(slot: str, site: SiteScheme, base: str = "q8bert") -> Scheme:
    return replace(preset(base), slots={**preset(base).slots, slot: site})


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("weight", "granularity"), "row", "weight.granularity is 'row'"),
        (("weight", "granularity"), "token", "weight.granularity is 'token'; allowed: tensor, channel"),
        (("weight", "grid"), "asymmetric", "weight.grid with 8 bits is 'asymmetric'; allowed: symmetric"),
        (("weight", "rule"), "ema", "weight.rule is 'ema'; allowed: max"),
        (("weight", "bits"), 0, "bits is 0; allowed: 1 to 8"),
        (("weight", "bits"), 9, "bits is 9; allowed: 1 to 8"),
        (("weight", "bits"), "8", "weight.bits is '8'; allowed: a whole number"),
        (("weight", "bits"), True, "weight.bits is true; allowed: a whole number"),
        (("weight", "bits"), 4.0, "weight.bits is 4.0; allowed: a whole number"),
        (("weight", "gradient"), "none", "weight.gradient is 'none'; allowed: 'straight_through'"),
        (("weight",), None, "its weight is not"),
        (("weight",), 8, "weight is 8; allowed: an object"),
        (("input",), None, "its input is not"),
        (("input", "rule"), "max", "input.rule of one scale a tensor is 'max'; allowed: ema"),
        (("input", "granularity"), "channel", "input.granularity is 'channel'; allowed: tensor, token"),
        (("input", "granularity"), "token", "input.rule of one scale a token is 'ema'; allowed: max"),
        (("input", "grid"), "affine", "input.grid is 'affine'"),
        (("input", "bits"), 5, "input.bits of one scale a tensor is 5; allowed: 4, 8"),
        (("output", "granularity"), "token", "output.granularity is 'token'; allowed: tensor"),
        (("output", "rule"), "max", "output.rule is 'max'; allowed: ema"),
        (("output", "grid"), "asymmetric", "output.grid is 'asymmetric'; allowed: symmetric"),
        (("output", "bits"), 4, "output.bits is 4; allowed: 8"),
        (("arithmetic",), "integer", "arithmetic is 'integer'; allowed: 'float' or 'relative_u8'"),
        (("arithmetic",), "relative_u8", "arithmetic 'relative_u8' is for attention_products"),
        (("start_step",), -1, "start_step is -1"),
        (("start_step",), True, "start_step is true; allowed: a whole number"),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else None,
)
def test_site_values_are_checked(place: tuple[str, ...], value: object, message: str) -> None:
    found = data()
    target = found["slots"]["query"]
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    with pytest.raises(SchemeError, match=message):
        Scheme.from_dict(found)


@pytest.mark.parametrize(
    ("slot", "site", "message"),
    [
        ("query", SiteScheme(PER_CHANNEL), "slot query: .* quantized together; its input is not"),
        ("query", SiteScheme(None, STATIC), "slot query: .* quantized together; its weight is not"),
        ("query", SiteScheme(PER_CHANNEL, PER_TOKEN, STATIC), "output needs an input of granularity 'tensor'"),
        ("word_embeddings", SiteScheme(PER_CHANNEL, STATIC), "word_embeddings: only linears have an input"),
        ("word_embeddings", SiteScheme(PER_CHANNEL, None, STATIC), "word_embeddings: only linears have an input"),
        ("head_dense", SiteScheme(PER_CHANNEL, STATIC, STATIC), "head_dense: .* of query, key and value"),
        (PRODUCTS, SiteScheme(PER_CHANNEL), "attention_products have no weight; .* arithmetic 'relative_u8'"),
        (PRODUCTS, SiteScheme(None, STATIC), "attention_products: only linears have an input"),
    ],
)
def test_slots_are_checked_against_their_place(slot: str, site: SiteScheme, message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        with_slot(slot, site)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ema_decay": 1.0}, "ema_decay must be at least 0 and less than 1, not 1.0"),
        ({"ema_decay": float("nan")}, "ema_decay must be at least 0"),
        ({"ema_decay": "0.9"}, "ema_decay is '0.9'; allowed: a number"),
        ({"ema_debias": 1}, "ema_debias is 1; allowed: true or false"),
        ({"name": ""}, "not empty"),
        ({"name": None}, "name is null; allowed: a text"),
        ({"slots": [1]}, r"slots is \[1\]; allowed: an object"),
        ({"overrides": {"*": {"bits": 8}}}, r"override '\*': bits is unknown; allowed here: weight, input"),
        ({"overrides": {"*": {"weight": {"bitz": 8}}}}, r"override '\*': weight.bitz is unknown; allowed here: bits"),
        ({"overrides": {"*": {"weight": {"bits": 9}}}}, r"override '\*': bits is 9; allowed: 1 to 8"),
        ({"overrides": {"*": {"weight": 4}}}, r"override '\*', weight must be a table of keys and values, not 4"),
        ({"overrides": {"*": {"start_step": -2}}}, r"override '\*': .*start_step is -2"),
        ({"overrides": {"*": "none"}}, "'none'"),
        ({"overrides": {"*": 3}}, "3"),
        ({"overrides": [3]}, r"overrides is \[3\]; allowed: an object"),
    ],
    ids=str,
)
def test_scheme_values_are_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        Scheme.from_dict({**data(), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ema_decay": 1.0}, "ema_decay must be at least 0 and less than 1, not 1.0"),
        ({"name": ""}, "not empty"),
        ({"overrides": {"*": {"bits": 8}}}, "bits is unknown"),
        ({"overrides": {"*": {"arithmetic": "f"}}}, "arithmetic is 'f'"),
    ],
)
def test_schemes_made_in_python_are_checked_too(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        replace(preset("q8bert"), **changes)  # type: ignore[arg-type]
    with pytest.raises(SchemeError, match="bits is 0; allowed: 1 to 8"):
        Quantizer(bits=0)


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_symmetric_grid_has_as_many_steps_on_both_sides(bits: int) -> None:
    assert Quantizer(bits).largest == {2: 1, 3: 3, 4: 7, 5: 15, 6: 31, 7: 63, 8: 127}[bits]


def test_later_overrides_win() -> None:
    overrides = {
        "layers.0.*": {"weight": {"granularity": "tensor", "bits": 4}},
        "*.query": {"weight": {"granularity": "channel"}},
    }
    scheme = replace(preset("q8bert"), overrides=overrides)
    weights = {path: scheme.at(path.split(".")[2], path).weight for path in ("layers.0.query", "layers.0.key")}
    assert weights == {
        "layers.0.query": Quantizer(4, granularity="channel"),  # merged, not replaced
        "layers.0.key": Quantizer(4, granularity="tensor"),
    }
    assert scheme.at("key", "layers.1.key").weight == PER_CHANNEL
    turned = replace(scheme, overrides=dict(reversed(list(overrides.items()))))
    assert turned.at("query", "layers.0.query").weight == Quantizer(4, granularity="tensor")


@pytest.mark.parametrize("nothing", ["none", None])
def test_an_override_takes_a_quantizer_away(nothing: str | None) -> None:
    scheme = replace(preset("q8bert"), overrides={"layers.0.query": {"output": nothing}})
    base = preset("q8bert").slots["query"]
    assert scheme.at("query", "layers.0.query") == replace(base, output=None)
    assert scheme.at("query", "layers.1.query") == base


def test_a_site_in_float_is_float_and_can_be_quantized_again() -> None:
    overrides: dict[str, Any] = {"layers.0.*": "float", "layers.0.ffn_in": {"weight": {"bits": 4}, "input": {}}}
    scheme = replace(preset("q8bert"), overrides=overrides)
    assert scheme.at("query", "layers.0.query") == SiteScheme()
    assert scheme.at(PRODUCTS, f"layers.0.{PRODUCTS}") == SiteScheme()
    found = scheme.at("ffn_in", "layers.0.ffn_in")
    assert found == SiteScheme(Quantizer(4, granularity="channel"), Quantizer(rule="ema"))


def test_a_layer_s_weights_are_changed_by_one_glob() -> None:
    """What attention products have none of is none of their business: they keep their scheme."""
    for name in ("q8bert", "q8bert-attention"):
        scheme = replace(preset(name), overrides={"layers.1.*": {"weight": {"granularity": "tensor"}}})
        assert scheme.at("ffn_in", "layers.1.ffn_in").weight == Quantizer()
        assert scheme.at(PRODUCTS, f"layers.1.{PRODUCTS}") == preset(name).slots[PRODUCTS]


def test_overrides_are_checked_where_they_apply() -> None:
    scheme = replace(preset("q8bert"), overrides={"head.output": {"output": {}}})
    with pytest.raises(SchemeError, match=r"head\.output: an output is quantized for an attention's products"):
        scheme.at("head_output", "head.output")


@pytest.mark.parametrize("slot", ["query", "key", "value"])
@pytest.mark.parametrize("change", [SiteScheme(), SiteScheme(PER_CHANNEL, STATIC)], ids=["float", "no output"])
def test_quantized_products_need_integer_operands(slot: str, change: SiteScheme) -> None:
    with pytest.raises(SchemeError, match=rf"attention_products in integers need .* but {slot} has none"):
        with_slot(slot, change, base="q8bert-attention")


def test_an_integer_value_needs_quantized_products() -> None:
    """Nothing else reads an integer value: the tensor `value.output_scale` says that the products are quantized."""
    with pytest.raises(SchemeError, match="the output of value is quantized for attention_products in integers"):
        with_slot(PRODUCTS, SiteScheme(), base="q8bert-attention")


def test_attention_presets_change_nothing_else() -> None:
    for name, base in (("q8bert-attention", "q8bert"), ("static-attention", "static")):
        ours, theirs = preset(name).slots, preset(base).slots
        assert {slot for slot in SLOTS if ours[slot] != theirs[slot]} == {"value", PRODUCTS}
        assert ours["value"] == replace(theirs["value"], output=theirs["query"].output)
        assert ours[PRODUCTS] == replace(theirs[PRODUCTS], arithmetic="relative_u8")


def test_static_presets_are_the_trained_ones_by_another_name() -> None:
    for name in ("q8bert", "q8bert-attention"):
        static = name.replace("q8bert", "static")
        assert preset(static) != replace(preset(name), name=static)  # what is not trained needs its inputs smoothed
        assert preset(static).smoothed(0) == replace(preset(name), name=static)


def test_the_dynamic_preset_needs_no_ranges() -> None:
    scheme = preset("dynamic")
    assert {scheme.slots[slot] for slot in LINEAR_SLOTS} == {SiteScheme(PER_CHANNEL, PER_TOKEN)}
    assert [name for name in PRESETS if not preset(name).needs_ranges] == ["dynamic"]


@pytest.mark.parametrize(
    ("change", "needs"),
    [
        ("float", False),
        ({"weight": {"bits": 4}}, False),
        ({"weight": "none", "input": "none"}, False),
        ({"output": "none"}, False),
        ({"input": {"granularity": "tensor", "rule": "ema"}}, True),
    ],
    ids=str,
)
def test_overrides_may_need_ranges(change: Any, needs: bool) -> None:
    assert replace(preset("dynamic"), overrides={"head.output": change}).needs_ranges is needs


def test_an_override_of_dynamic_inputs_needs_no_ranges() -> None:
    """Tables have no input: they are not asked what the change would make of one."""
    assert not replace(preset("dynamic"), overrides={"*.query": {"input": {"bits": 8}}}).needs_ranges


def test_tables_and_linears_are_all_slots() -> None:
    assert set(SLOTS) == {*TABLES, *LINEAR_SLOTS, PRODUCTS}
    assert len(SLOTS) == len(set(SLOTS))


def test_schemes_do_not_change() -> None:
    scheme = preset("q8bert")
    with pytest.raises(FrozenInstanceError):
        scheme.ema_decay = 0.5  # type: ignore[misc]
    slots = dict(scheme.slots)
    copy = replace(scheme, slots=slots)
    slots.clear()
    assert tuple(copy.slots) == SLOTS
    with pytest.raises(TypeError):
        PRESETS["q8bert"] = copy  # type: ignore[index]


def test_what_a_scheme_says_is_no_view_of_it() -> None:
    scheme = preset("q8bert")
    before = asdict(scheme)
    said: Any = scheme.to_dict()
    said["slots"]["query"]["weight"]["bits"] = 2
    said["overrides"]["*"] = "float"
    assert asdict(scheme) == before
