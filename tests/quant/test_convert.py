"""The tensors of the int8 checkpoint, run through an integer BERT that shares no code with q8core."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from q8core.errors import CalibrationError, CheckpointError
from q8core.quant import PRESETS, QATLinear, calibrate, convert, dequantized_tensors, prepare, preset
from tests.quant.conftest import Batch, make_batch, make_classifier, make_qa
from tests.quant.integer_reference import IntegerBert


def prepared(name: str, task: str = "classify", **changes: object) -> nn.Module:
    model = make_classifier() if task == "classify" else make_qa()
    prepare(model, replace(preset(name), **changes))  # type: ignore[arg-type]
    calibrate(model, [make_batch(seed) for seed in range(3)])
    return model.eval()


def reference(tensors: dict[str, Tensor]) -> IntegerBert:
    return IntegerBert(tensors, heads=4, eps=1e-12)


@pytest.mark.parametrize("name", list(PRESETS))
@pytest.mark.parametrize("task", ["classify", "qa"])
def test_whole_model_equals_an_integer_bert(name: str, task: str) -> None:
    model = prepared(name, task)
    integer = reference(convert(model))
    for seed in range(10, 14):
        batch = make_batch(seed)
        with torch.no_grad():
            out = model(**batch)
        expected = integer.logits(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"])
        if task == "classify":
            got, real = out.logits.numpy(), np.ones(6, dtype=bool)
        else:
            got = torch.stack([out.start_logits, out.end_logits], -1).numpy()
            real = batch["attention_mask"].numpy() == 1
        difference = np.abs(got - expected)[real]
        # Float32 and float64 may round a value that lies on a tie to neighbouring integers: rarely, by one step.
        assert np.median(difference) < 1e-5 * np.abs(expected).max()
        # With quantized products such a step goes on to more places: every query's probability of that key.
        assert difference.max() < (3e-2 if name.endswith("attention") else 5e-3) * np.abs(expected).max()
        axis = -1 if task == "classify" else 1
        masked = np.where(real[..., None], expected, -math.inf)
        assert np.array_equal(np.where(real[..., None], got, -math.inf).argmax(axis), masked.argmax(axis))
    assert integer.largest_accumulator < 2**24


@pytest.mark.parametrize("path", ["bert.encoder.layer.0.intermediate.dense", "bert.encoder.layer.1.attention.self.key"])
@pytest.mark.parametrize("name", list(PRESETS))
def test_one_linear_equals_int64(name: str, path: str) -> None:
    model = prepared(name)
    layer = model.get_submodule(path)
    x = torch.randn(4, 9, 32, generator=torch.Generator().manual_seed(1))
    got = layer(x).detach().numpy()
    expected = reference(convert(model)).linear(path, x.double().numpy())
    step = np.abs(expected).max() / 127
    close = np.abs(got - expected) < 1e-5 * np.abs(expected).max()
    assert close.mean() > 0.999  # but for values on a tie, see above
    assert np.abs(got - expected).max() < 1.01 * step


def test_names_types_and_shapes() -> None:
    model = prepared("q8bert")
    tensors = convert(model)
    path = "bert.encoder.layer.0.attention.self.query"
    kinds = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    assert kinds[f"{path}.weight"] == (torch.int8, (32, 32))
    assert kinds[f"{path}.weight_scale"] == (torch.float32, (32,))
    assert kinds[f"{path}.input_scale"] == (torch.float32, (1,))
    assert kinds[f"{path}.output_scale"] == (torch.float32, (1,))
    assert kinds[f"{path}.bias"] == (torch.int32, (32,))
    assert kinds["bert.embeddings.word_embeddings.weight"] == (torch.int8, (100, 32))
    assert kinds["bert.embeddings.word_embeddings.weight_scale"] == (torch.float32, (100,))
    assert kinds["bert.embeddings.token_type_embeddings.weight"] == (torch.float32, (2, 32))
    assert "bert.embeddings.token_type_embeddings.weight_scale" not in kinds
    assert requantized(tensors) == {f"{layer}.{name}" for layer in (0, 1) for name in ("query", "key")}
    assert {name for name, _ in model.named_parameters()} <= kinds.keys()
    assert not any("threshold" in name or "observed" in name or "position_ids" in name for name in kinds)
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    pointers = [tensor.data_ptr() for tensor in tensors.values()]
    assert len(set(pointers)) == len(pointers)  # safetensors refuses shared memory
    assert all(int(tensor.min()) >= -127 for tensor in tensors.values() if tensor.dtype == torch.int8)


def requantized(tensors: dict[str, Tensor]) -> set[str]:
    """The linears with an output scale, as layer.name."""
    paths = [name.removesuffix(".output_scale") for name in tensors if name.endswith(".output_scale")]
    return {path.removeprefix("bert.encoder.layer.").replace("attention.self.", "") for path in paths}


def test_quantized_products_add_one_scale_per_layer() -> None:
    tensors, without = convert(prepared("q8bert-attention")), convert(prepared("q8bert"))
    assert {name: (t.dtype, t.shape) for name, t in tensors.items() if name not in without} == {
        f"bert.encoder.layer.{layer}.attention.self.value.output_scale": (torch.float32, (1,)) for layer in (0, 1)
    }
    assert without.keys() < tensors.keys()


def test_per_tensor_scales_have_one_element() -> None:
    scales = {name: tensor for name, tensor in convert(prepared("q8bert-paper")).items() if name.endswith("_scale")}
    assert {tuple(scale.shape) for scale in scales.values()} == {(1,)}


def test_dynamic_checkpoint_has_no_activation_scales() -> None:
    tensors = convert(prepare(make_classifier(), preset("dynamic")))  # no calibration needed
    assert not any(name.endswith(("input_scale", "output_scale")) for name in tensors)
    assert tensors["classifier.bias"].dtype == torch.float32


def test_disabled_slots_stay_plain_float() -> None:
    model = prepared("q8bert", overrides={"classifier": {"enabled": False}})
    tensors = convert(model)
    assert tensors["classifier.weight"].dtype == tensors["classifier.bias"].dtype == torch.float32
    assert "classifier.weight_scale" not in tensors


def test_conversion_does_not_change_the_model(batch: Batch) -> None:
    model = prepared("q8bert")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for tensor in convert(model).values():
        tensor.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "name",
    [
        "bert.encoder.layer.0.output.dense.weight",
        "bert.encoder.layer.0.output.dense.bias",
        "bert.encoder.layer.1.output.LayerNorm.bias",
        "bert.embeddings.word_embeddings.weight",
        "bert.embeddings.token_type_embeddings.weight",
    ],
)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("preset_name", ["q8bert", "dynamic"])
def test_bad_weights_are_refused_by_name(name: str, bad: float, preset_name: str) -> None:
    model = prepared(preset_name)
    with torch.no_grad():
        model.get_parameter(name).reshape(-1)[1] = bad
    module = name.rpartition(".")[0].replace(".", r"\.")
    with pytest.raises(CalibrationError, match=module):
        convert(model)


@pytest.mark.parametrize("name", list(PRESETS))
def test_dequantized_tensors_fit_a_plain_model(name: str, batch: Batch) -> None:
    model = prepared(name)
    tensors = convert(model)
    floats = dequantized_tensors(tensors)
    assert {tensor.dtype for tensor in floats.values()} == {torch.float32}
    plain = make_classifier(seed=1)
    plain.load_state_dict(floats)  # strict
    expected = model(**batch).logits
    assert (plain(**batch).logits - expected).abs().max() < 0.05 * expected.abs().max()
    for path, layer in model.named_modules():
        if isinstance(layer, QATLinear):
            sw = tensors[f"{path}.weight_scale"].reshape(-1, 1)
            assert ((floats[f"{path}.weight"] - layer.weight).abs() <= sw * 0.5001).all()
            assert (floats[f"{path}.bias"] - layer.bias).abs().max() < 1e-3


def test_dequantizing_needs_every_scale() -> None:
    tensors = convert(prepared("q8bert"))
    for leaf in ("weight_scale", "input_scale"):
        damaged = {name: tensor for name, tensor in tensors.items() if name != f"classifier.{leaf}"}
        with pytest.raises(CheckpointError, match=rf"classifier\.{leaf} is missing"):
            dequantized_tensors(damaged)
    with pytest.raises(CheckpointError, match=r"has shape \(7,\); allowed are \(1,\) and \(3,\)"):
        dequantized_tensors({**tensors, "classifier.weight_scale": torch.ones(7)})
