"""The tensors of the int8 checkpoint, run through an integer BERT that shares no code with q8core."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from q8core.arrays import Array
from q8core.errors import CalibrationError
from q8core.model.network import Network
from q8core.quant import Plan, Scheme, preset
from q8core.quant.dequantized import DequantizedTensors
from q8core.quant.qat.convert import arrays, convert
from q8core.quant.qat.layers import QATLinear
from q8core.quant.qat.prepare import calibrate, master_weights, quantized_layers
from q8core.quant.schemes.scheme import changed
from tests.arrays import as_tensors
from tests.models import EIGHT_BITS, FEW_BITS, small
from tests.quant.conftest import Batch, make_batch, make_classifier, make_qa, plan_for, prepared
from tests.quant.integer_reference import IntegerBert


def quantized(name: str, task: str = "classify", **changes: Any) -> tuple[Network, Plan]:
    return quantized_with(replace(small(name), **changes), task)


def quantized_with(scheme: Scheme, task: str = "classify") -> tuple[Network, Plan]:
    model = make_classifier() if task == "classify" else make_qa()
    plan = plan_for(model, scheme)
    prepared(model, scheme)
    calibrate(model, [make_batch(seed) for seed in range(3)])
    return model.eval(), plan


def with_bits(name: str, bits: int) -> Scheme:
    """A preset whose weights and tables have fewer bits."""
    base = preset(name)
    slots = {
        slot: changed(scheme, {"weight": {"bits": bits}}, slot) if scheme.weight else scheme
        for slot, scheme in base.slots.items()
    }
    return replace(base, name="bits", slots=slots)


def check_against_integers(model: Network, plan: Plan) -> None:
    """Compare logits and answers with those of an integer BERT, which computes with float64 between its integers.

    Float32 and float64 may round a value that lies on a tie to neighbouring integers: in one sequence of many, by one
    step, which attention hands on to the sequence's other tokens. All other sequences agree to float32's rounding.
    """
    integer, differences = IntegerBert(plan, convert(model)), list[float]()
    for seed in range(10, 14):
        batch = make_batch(seed)
        with torch.no_grad():
            got = model(**batch).numpy()
        expected = integer.logits(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"])
        classify = plan.head.reads == "first"
        real = np.ones(6, dtype=bool) if classify else batch["attention_mask"].numpy() == 1
        for row, seen in enumerate(real):
            differences.append(np.abs(got - expected)[row, seen].max() / np.abs(expected).max())
        axis = -1 if classify else 1
        masked = np.where(real[..., None], expected, -math.inf)
        assert np.array_equal(np.where(real[..., None], got, -math.inf).argmax(axis), masked.argmax(axis))
    assert sum(difference > 1e-6 for difference in differences) <= 2, differences
    assert max(differences) < 3e-2
    assert integer.largest_accumulator < 2**24


@pytest.mark.parametrize("name", [*EIGHT_BITS, *FEW_BITS])
@pytest.mark.parametrize("task", ["classify", "qa"])
def test_whole_model_equals_an_integer_bert(name: str, task: str) -> None:
    check_against_integers(*quantized(name, task))


@pytest.mark.parametrize("name", ["q8bert-attention", "q8bert-paper", "dynamic"])
@pytest.mark.parametrize("bits", [7, 4, 3, 2])
def test_a_model_of_few_bits_equals_an_integer_bert(name: str, bits: int) -> None:
    check_against_integers(*quantized_with(with_bits(name, bits)))


def test_a_model_of_mixed_bits_equals_an_integer_bert() -> None:
    overrides = {
        "layers.0.*": {"weight": {"bits": 4}},
        "layers.0.attention_products": "float",
        "layers.0.value": {"output": "none"},
        "*.ffn_out": {"weight": {"bits": 2, "granularity": "tensor"}},
        "*.attention_output": "float",
        "layers.1.ffn_in": {"input": {"granularity": "token", "rule": "max", "grid": "symmetric"}},
        "head.output": {"weight": {"bits": 3}},
    }
    model, plan = quantized("q8bert-attention", overrides=overrides)
    assert {site.kind for site in plan.sites.values()} == {"float", "static", "dynamic"}
    check_against_integers(model, plan)


@pytest.mark.parametrize("path", ["layers.0.ffn_in", "layers.1.key"])
@pytest.mark.parametrize("name", [*EIGHT_BITS, *FEW_BITS])
def test_one_linear_equals_int64(name: str, path: str) -> None:
    model, plan = quantized(name)
    layer = model.get_submodule(path)
    x = torch.randn(4, 9, 32, generator=torch.Generator().manual_seed(1))
    got = layer(x).detach().numpy()
    expected = IntegerBert(plan, convert(model)).linear(path, x.double().numpy())
    step = np.abs(expected).max() / 127
    close = np.abs(got - expected) < 1e-5 * np.abs(expected).max()
    assert close.mean() > 0.999  # but for values on a tie, see above
    assert np.abs(got - expected).max() < 1.01 * step


def test_names_types_and_shapes() -> None:
    model, plan = quantized("q8bert")
    tensors = convert(model)
    path = "layers.0.query"
    kinds = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    assert kinds[f"{path}.weight"] == (torch.int8, (32, 32))
    assert kinds[f"{path}.weight_scale"] == (torch.float32, (32,))
    assert kinds[f"{path}.input_scale"] == (torch.float32, (1,))
    assert kinds[f"{path}.output_scale"] == (torch.float32, (1,))
    assert kinds[f"{path}.bias"] == (torch.int32, (32,))
    assert kinds["word_embeddings.weight"] == (torch.int8, (100, 32))
    assert kinds["word_embeddings.weight_scale"] == (torch.float32, (100,))
    assert kinds["token_type_embeddings.weight"] == (torch.float32, (2, 32))
    assert "token_type_embeddings.weight_scale" not in kinds
    assert requantized(tensors) == {f"{layer}.{name}" for layer in (0, 1) for name in ("query", "key")}
    assert {name for name, _ in model.named_parameters()} <= kinds.keys()
    assert kinds == planned(plan)
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    pointers = [tensor.data_ptr() for tensor in tensors.values()]
    assert len(set(pointers)) == len(pointers)  # safetensors refuses shared memory
    assert all(int(tensor.min()) >= -127 for tensor in tensors.values() if tensor.dtype == torch.int8)


def planned(plan: Plan) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    types = {"F32": torch.float32, "I8": torch.int8, "U8": torch.uint8, "I32": torch.int32}
    return {name: (types[tensor.dtype], tensor.shape) for name, tensor in plan.tensors.items()}


@pytest.mark.parametrize("task", ["classify", "qa"])
@pytest.mark.parametrize("bits", [8, 5, 4, 3, 2])
@pytest.mark.parametrize("name", EIGHT_BITS)
def test_tensors_are_those_of_the_plan(name: str, bits: int, task: str) -> None:
    model, plan = quantized_with(with_bits(name, bits), task)
    tensors = convert(model)
    assert {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()} == planned(plan)
    assert all(tensor.is_contiguous() for tensor in tensors.values())


def requantized(tensors: dict[str, Tensor]) -> set[str]:
    """The linears with an output scale, as layer.name."""
    paths = [name.removesuffix(".output_scale") for name in tensors if name.endswith(".output_scale")]
    return {path.removeprefix("layers.") for path in paths}


def test_quantized_products_add_one_scale_per_layer() -> None:
    tensors, without = (convert(quantized(name)[0]) for name in ("q8bert-attention", "q8bert"))
    assert {name: (t.dtype, t.shape) for name, t in tensors.items() if name not in without} == {
        f"layers.{layer}.value.output_scale": (torch.float32, (1,)) for layer in (0, 1)
    }
    assert without.keys() < tensors.keys()


def test_per_tensor_scales_have_one_element() -> None:
    tensors = convert(quantized("q8bert-paper")[0])
    scales = {name: tensor for name, tensor in tensors.items() if name.endswith("_scale")}
    assert {tuple(scale.shape) for scale in scales.values()} == {(1,)}


def test_dynamic_checkpoint_has_no_activation_scales() -> None:
    tensors = convert(prepared(make_classifier(), preset("dynamic")))  # no calibration needed
    assert not any(name.endswith(("input_scale", "output_scale")) for name in tensors)
    assert tensors["head.output.bias"].dtype == torch.float32


def test_float_sites_stay_plain_float() -> None:
    model, _ = quantized("q8bert", overrides={"head.output": "float"})
    tensors = convert(model)
    assert tensors["head.output.weight"].dtype == tensors["head.output.bias"].dtype == torch.float32
    assert "head.output.weight_scale" not in tensors


@pytest.mark.parametrize("bits", [8, 4])
def test_conversion_does_not_change_the_model(bits: int) -> None:
    model, _ = quantized_with(with_bits("q8bert", bits))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for tensor in convert(model).values():
        tensor.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "name",
    [
        "layers.0.ffn_out.weight",
        "layers.0.ffn_out.bias",
        "layers.1.ffn_norm.bias",
        "word_embeddings.weight",
        "token_type_embeddings.weight",
    ],
)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("preset_name", ["q8bert", "dynamic"])
def test_bad_weights_are_refused_by_name(name: str, bad: float, preset_name: str) -> None:
    model, _ = quantized(preset_name)
    with torch.no_grad():
        model.get_parameter(name).reshape(-1)[1] = bad
    module = name.rpartition(".")[0].replace(".", r"\.")
    with pytest.raises(CalibrationError, match=module):
        convert(model)


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_dequantized_tensors_fit_a_plain_model(name: str, batch: Batch) -> None:
    model, plan = quantized(name)
    tensors = convert(model)
    floats = as_tensors(DequantizedTensors(plan, arrays(tensors)))
    assert {tensor.dtype for tensor in floats.values()} == {torch.float32}
    plain = make_classifier(seed=1)
    plain.load_state_dict(floats)  # strict
    expected = model(**batch)
    assert (plain(**batch) - expected).abs().max() < 0.05 * expected.abs().max()
    for path, layer in model.named_modules():
        if isinstance(layer, QATLinear):
            sw = tensors[f"{path}.weight_scale"].reshape(-1, 1)
            sw = sw if layer.smoothing is None else sw / layer.smoothing
            assert ((floats[f"{path}.weight"] - layer.weight).abs() <= sw * 0.5001).all()
            assert (floats[f"{path}.bias"] - layer.bias).abs().max() < 1e-3


@pytest.mark.parametrize("bits", [8, 6, 4, 3, 2])
def test_dequantized_tensors_are_the_grids_nearest(bits: int) -> None:
    """Also where integers share bytes: of every weight, what training multiplied with."""
    model, plan = quantized_with(with_bits("q8bert", bits))
    tensors, masters = convert(model), master_weights(model)
    floats = as_tensors(DequantizedTensors(plan, arrays(tensors)))
    assert floats.keys() == masters.keys()
    linears, tables = quantized_layers(model)
    for path in (*linears, *tables):
        sw = tensors[f"{path}.weight_scale"].reshape(-1, 1)
        steps = floats[f"{path}.weight"] / sw
        assert int(steps.round().abs().max()) == 2 ** (bits - 1) - 1
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
        assert ((floats[f"{path}.weight"] - masters[f"{path}.weight"]).abs() <= sw * 0.5001).all()


def test_dequantized_tensors_are_made_one_at_a_time() -> None:
    """Loading an engine must not keep a second copy of the model: nothing is read before it is asked for, or kept."""
    model, plan = quantized("q8bert")
    read: list[str] = []

    class Recorder(dict[str, Array]):
        def __getitem__(self, name: str) -> Array:
            read.append(name)
            return super().__getitem__(name)

    floats = DequantizedTensors(plan, Recorder(arrays(convert(model))))
    name = "layers.0.ffn_in.weight"
    assert name in floats
    assert len(list(floats)) == len(floats)
    assert read == []
    assert floats[name] is not floats[name]
    assert read == [name, "layers.0.ffn_in.weight_scale"] * 2


def test_dequantized_tensors_are_no_views() -> None:
    model, plan = quantized("q8bert")
    tensors = convert(model)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    for array in DequantizedTensors(plan, arrays(tensors)).values():
        array.fill(0)
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors.items())
