"""The plan of a model: the sites of its family, a scheme's quantizers, and the tensors that follow."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from q8core.errors import SchemeError
from q8core.model.head import HeadSpec
from q8core.model.sites import float_shapes, sites
from q8core.model.spec import EncoderSpec
from q8core.quant import SLOTS, Plan, Scheme, SiteScheme, preset
from q8core.quant.plan import TensorPlan
from tests.models import EIGHT_BITS

BERT = EncoderSpec(2, 32, 4, 64, 100, 64, 2, 1e-12)
ELECTRA = replace(BERT, embedding=16)
MPNET = replace(BERT, token_types=0, first_position=2, relative_buckets=32)
SPECS = {"bert": BERT, "electra": ELECTRA, "mpnet": MPNET}
CLASSIFY, QA = HeadSpec("first", 3, "tanh"), HeadSpec("every", 2)
PRODUCTS = "attention_products"


def plan(scheme: Scheme | str | None, spec: EncoderSpec = BERT, head: HeadSpec = CLASSIFY, **changes: Any) -> Plan:
    whole = preset(scheme) if isinstance(scheme, str) else scheme
    return Plan.of(spec, head, replace(whole, **changes) if whole and changes else whole)


@pytest.mark.parametrize("head", [CLASSIFY, QA], ids=["classify", "qa"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("name", [None, *EIGHT_BITS])
def test_all_sites_are_planned_in_their_order(name: str | None, spec: EncoderSpec, head: HeadSpec) -> None:
    if spec is MPNET and name and name.endswith("attention"):
        name = name.removesuffix("-attention")  # see below
    found = plan(name, spec, head)
    assert [site.site for site in found.sites.values()] == list(sites(spec, head))
    assert list(found.sites) == [site.path for site in sites(spec, head)]
    for path, site in found.sites.items():
        assert site.path == path
        slot = site.site.slot
        assert site.scheme == (preset(name).slots[slot] if name and slot in SLOTS else SiteScheme())
        assert (site.weight, site.input, site.output) == (site.scheme.weight, site.scheme.input, site.scheme.output)
        assert site.arithmetic == site.scheme.arithmetic


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_without_a_scheme_all_tensors_are_float(spec: EncoderSpec) -> None:
    shapes = float_shapes(spec, CLASSIFY)
    assert plan(None, spec).tensors == {name: TensorPlan("F32", shape) for name, shape in shapes.items()}
    nothing = Scheme("nothing", {slot: SiteScheme() for slot in SLOTS})
    assert plan(nothing, spec).tensors == plan(None, spec).tensors
    assert {site.kind for site in plan(None, spec).sites.values()} == {"float"}


def test_tensors_of_the_default() -> None:
    tensors = plan("q8bert").tensors
    assert {name: tensor for name, tensor in tensors.items() if name.startswith("layers.1.query.")} == {
        "layers.1.query.weight": TensorPlan("I8", (32, 32)),
        "layers.1.query.weight_scale": TensorPlan("F32", (32,)),
        "layers.1.query.bias": TensorPlan("I32", (32,)),
        "layers.1.query.input_scale": TensorPlan("F32", (1,)),
        "layers.1.query.input_zero_point": TensorPlan("I32", (1,)),
        "layers.1.query.output_scale": TensorPlan("F32", (1,)),
    }
    assert tensors["layers.0.ffn_in.weight"] == TensorPlan("I8", (64, 32))
    assert tensors["layers.0.ffn_out.weight"] == TensorPlan("I8", (32, 64))
    assert tensors["layers.0.ffn_in.weight_scale"] == TensorPlan("F32", (64,))
    assert tensors["word_embeddings.weight"] == TensorPlan("I8", (100, 32))
    assert tensors["word_embeddings.weight_scale"] == TensorPlan("F32", (100,))
    assert tensors["token_type_embeddings.weight"] == TensorPlan("F32", (2, 32))
    assert tensors["layers.0.ffn_norm.bias"] == TensorPlan("F32", (32,))
    assert not any(PRODUCTS in name for name in tensors)
    leaves = Counter(name.rpartition(".")[2] for name in tensors)
    linears = 2 * 6 + 2
    assert leaves["input_scale"] == leaves["input_zero_point"] == linears
    assert leaves["output_scale"] == 2 * 2
    assert leaves["weight_scale"] == linears + 2


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_tensors_of_presets_differ_as_they_do(name: str) -> None:
    leaves = Counter(tensor.rpartition(".")[2] for tensor in plan(name).tensors)
    dynamic, paper = name == "dynamic", name == "q8bert-paper"
    assert leaves["input_scale"] == (0 if dynamic else 14)
    assert leaves["input_zero_point"] == (0 if dynamic or paper else 14)
    assert leaves["output_scale"] == (0 if dynamic else 6 if name.endswith("attention") else 4)
    scales = {tensor.shape for key, tensor in plan(name).tensors.items() if key.endswith("weight_scale")}
    assert (scales == {(1,)}) is paper
    biases = {plan(name).tensors[f"{path}.bias"].dtype for path in ("layers.0.key", "layers.1.ffn_out", "head.output")}
    assert biases == {"F32" if dynamic else "I32"}


@pytest.mark.parametrize(
    ("bits", "dtype", "columns"),
    [(8, "I8", 33), (7, "I8", 33), (5, "I8", 33), (4, "U8", 17), (3, "U8", 13), (2, "U8", 9)],
)
def test_few_bits_take_whole_bytes_of_a_row(bits: int, dtype: str, columns: int) -> None:
    spec = replace(BERT, hidden=33, heads=3)
    found = plan(
        "q8bert", spec, overrides={"*.ffn_in": {"weight": {"bits": bits}}, "word_*": {"weight": {"bits": bits}}}
    )
    assert found.tensors["layers.0.ffn_in.weight"] == TensorPlan(dtype, (64, columns))  # type: ignore[arg-type]
    assert found.tensors["word_embeddings.weight"] == TensorPlan(dtype, (100, columns))  # type: ignore[arg-type]
    assert found.tensors["layers.0.ffn_in.weight_scale"] == TensorPlan("F32", (64,))
    levels = found.tensors.get("layers.0.ffn_in.weight_levels")
    assert levels == (None if dtype == "I8" else TensorPlan("I8", (2**bits,)))
    assert found.tensors["layers.0.key.weight"] == TensorPlan("I8", (33, 33))


def test_kinds() -> None:
    token = {"granularity": "token", "rule": "max", "grid": "symmetric"}
    found = plan("q8bert", overrides={"layers.0.*put": "float", "*.ffn_in": {"input": token}, "head.*": "float"})
    kinds = {path: site.kind for path, site in found.sites.items() if site.site.kind == "linear"}
    assert {path for path, kind in kinds.items() if kind == "float"} == {
        "layers.0.attention_output",
        "head.dense",
        "head.output",
    }
    assert {path for path, kind in kinds.items() if kind == "dynamic"} == {"layers.0.ffn_in", "layers.1.ffn_in"}
    assert {found.sites[path].kind for path in ("word_embeddings", "embedding_norm", f"layers.0.{PRODUCTS}")} == {
        "float"
    }
    assert "layers.0.ffn_in.input_scale" not in found.tensors
    assert found.tensors["layers.0.ffn_in.bias"].dtype == "F32"


def test_families_differ_in_their_sites() -> None:
    assert plan("q8bert", ELECTRA).tensors["embedding_projection.weight"] == TensorPlan("I8", (32, 16))
    assert plan("q8bert", ELECTRA).tensors["word_embeddings.weight"] == TensorPlan("I8", (100, 16))
    assert plan("q8bert", ELECTRA).sites["embedding_projection"].kind == "static"
    assert "embedding_projection" not in plan("q8bert").sites
    mpnet = plan("q8bert", MPNET)
    assert "token_type_embeddings" not in mpnet.sites
    assert mpnet.tensors["position_embeddings.weight"] == TensorPlan("I8", (66, 32))
    assert mpnet.tensors["relative_attention_bias.weight"] == TensorPlan("F32", (32, 4))
    assert "head.dense" not in plan("q8bert", head=QA).sites
    assert plan("q8bert", head=QA).tensors["head.output.weight"] == TensorPlan("I8", (2, 32))


def test_a_layer_s_sites_are_found_by_slot() -> None:
    found = plan("q8bert")
    for layer in range(2):
        assert found.of_layer(layer, "ffn_in") is found.sites[f"layers.{layer}.ffn_in"]
    assert "layers.1.ffn_in" in found.sites
    assert "layers.2.ffn_in" not in found.sites


@pytest.mark.parametrize("glob", ["layers.2.*", "head.ouput", "*.layer.0.*", "bert.*", "Layers.0.query", "query", ""])
def test_overrides_that_match_no_site_are_refused(glob: str) -> None:
    """A typo must never leave a layer in float, or out of it, silently."""
    with pytest.raises(SchemeError, match=r"matches no site; sites are word_embeddings, .*, head\.output") as error:
        plan("q8bert", overrides={"layers.0.*": {"start_step": 1}, glob: "float"})
    assert repr(glob) in str(error.value)


@pytest.mark.parametrize("path", ["embedding_norm", "layers.0.attention_norm", "*_norm", "relative_attention_bias"])
def test_overrides_of_what_cannot_be_quantized_are_refused(path: str) -> None:
    with pytest.raises(SchemeError, match="matches no site"):
        plan("q8bert", MPNET, overrides={path: "float"})


def test_overrides_for_another_head_match_no_site() -> None:
    assert plan("q8bert", overrides={"head.dense": "float"}).sites["head.dense"].kind == "float"
    with pytest.raises(SchemeError, match=r"'head\.dense' matches no site"):
        plan("q8bert", head=QA, overrides={"head.dense": "float"})


@pytest.mark.parametrize("slot", ["query", "key", "value"])
@pytest.mark.parametrize("change", ["float", {"output": "none"}], ids=str)
def test_products_are_checked_layer_by_layer(slot: str, change: Any) -> None:
    with pytest.raises(SchemeError, match=rf"layers\.1: {PRODUCTS} in integers need .* but {slot} has none"):
        plan("q8bert-attention", overrides={f"layers.1.{slot}": change})
    overrides = {f"layers.1.{slot}": change, f"layers.1.{PRODUCTS}": "float"}
    if slot != "value":
        with pytest.raises(SchemeError, match=r"layers\.1: the output of value is quantized"):
            plan("q8bert-attention", overrides=overrides)
        overrides["layers.1.value"] = {"output": "none"}
    found = plan("q8bert-attention", overrides=overrides)
    assert [found.of_layer(layer, PRODUCTS).arithmetic for layer in range(2)] == ["relative_u8", "float"]


def test_products_come_to_a_layer_with_its_value() -> None:
    with pytest.raises(SchemeError, match=rf"layers\.1: {PRODUCTS} in integers need .* but value has none"):
        plan("q8bert", overrides={f"layers.1.{PRODUCTS}": {"arithmetic": "relative_u8"}})
    with pytest.raises(SchemeError, match=r"layers\.1: the output of value is quantized"):
        plan("q8bert", overrides={"layers.1.value": {"output": {}}})
    overrides = {f"layers.1.{PRODUCTS}": {"arithmetic": "relative_u8"}, "layers.1.value": {"output": {}}}
    found = plan("q8bert", overrides=overrides)
    assert [found.of_layer(layer, PRODUCTS).arithmetic for layer in range(2)] == ["float", "relative_u8"]
    assert [name for name in found.tensors if name.endswith("value.output_scale")] == ["layers.1.value.output_scale"]


@pytest.mark.parametrize(
    ("glob", "change", "message"),
    [
        ("head.output", {"output": {}}, r"head\.output: an output is quantized for an attention's products"),
        ("layers.0.ffn_in", {"input": "none"}, r"layers\.0\.ffn_in: .* its input is not"),
        ("layers.0.ffn_in", {"weight": "none"}, r"layers\.0\.ffn_in: .* its weight is not"),
        ("layers.0.ffn_in", {"input": {"granularity": "token"}}, r"layers\.0\.ffn_in: input\.rule .*; allowed: max"),
        ("word_*", {"input": {}}, "word_embeddings: only linears have an input"),
        (f"*.{PRODUCTS}", {"weight": {}}, rf"layers\.0\.{PRODUCTS}: {PRODUCTS} have no weight"),
        ("*.ffn_in", {"arithmetic": "relative_u8"}, r"layers\.0\.ffn_in: arithmetic 'relative_u8' is for"),
    ],
)
def test_overrides_that_do_not_fit_name_the_site(glob: str, change: Any, message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        plan("q8bert", overrides={glob: change})


def test_scores_with_a_bias_are_computed_in_either_arithmetic() -> None:
    """MPNet adds a bias to its scores; its table has no quantizer."""
    for name, arithmetic in (("q8bert", "float"), ("q8bert-attention", "relative_u8")):
        found = plan(name, MPNET)
        assert found.of_layer(0, PRODUCTS).arithmetic == arithmetic
        assert found.sites["relative_attention_bias"].weight is None
