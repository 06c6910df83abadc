"""The presets with few bits: what has how many, and what a checkpoint holds for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from q8core.errors import SchemeError
from q8core.model.head import HeadSpec
from q8core.model.sites import LAYER_LINEARS
from q8core.model.spec import EncoderSpec
from q8core.quant import Plan, preset
from q8core.quant.dequantized import DequantizedTensors
from q8core.quant.qat.convert import arrays, convert
from q8core.quant.qat.prepare import calibrate, quantized_layers
from q8core.quant.qat.weight_grid import weight_integers
from q8core.quant.schemes import find_scheme
from tests.models import EIGHT_BITS, FEW_BITS, small
from tests.quant.conftest import make_batch, make_classifier, plan_for, prepared

MINILM = EncoderSpec(6, 384, 12, 1536, 30522, 512, 2, 1e-12)
HEAD = HeadSpec("first", 2, "tanh")

BITS = {
    "qbert-4": (4, 8, 8),
    "qbert-3": (3, 8, 8),
    "qbert-2": (2, 8, 8),
    "kdlsq-4": (4, 4, 8),
    "kdlsq-2": (2, 2, 8),
    "ternary": (2, 2, 8),
    "binary": (1, 1, 8),
    "binary-split": (2, 2, 8),
}
"""Bits of the encoder's weights, of words, and of activations."""


@pytest.mark.parametrize("name", BITS)
def test_bits_of_weights_words_and_activations(name: str) -> None:
    plan = Plan.of(MINILM, HEAD, preset(name))
    of = {path: site for path, site in plan.sites.items() if site.weight is not None}
    layers = [site for path, site in of.items() if path.startswith("layers.")]
    assert len(layers) == 6 * len(LAYER_LINEARS)
    weights, words, inputs = BITS[name]
    assert {site.weight.bits for site in layers if site.weight} == {weights}
    assert {site.input.bits for site in of.values() if site.input} == {inputs}
    bits = {path: site.weight.bits for path, site in of.items() if site.weight and not path.startswith("layers.")}
    assert bits == {"word_embeddings": words, "position_embeddings": 8, "head.dense": 8, "head.output": 8}


def test_every_preset_is_of_one_kind() -> None:
    assert {*BITS, "mkq"} == set(FEW_BITS)
    for name in EIGHT_BITS:
        assert {site.weight.bits for site in preset(name).slots.values() if site.weight} == {8}


@pytest.mark.parametrize(("layers", "few"), [(6, [3, 4, 5]), (5, [2, 3, 4]), (1, [0]), (12, [6, 7, 8, 9, 10, 11])])
def test_the_upper_half_of_mkq_has_4_bits(layers: int, few: list[int]) -> None:
    plan = Plan.of(replace(MINILM, layers=layers), HEAD, preset("mkq"))
    for slot in LAYER_LINEARS:
        sites = [plan.of_layer(number, slot) for number in range(layers)]
        bits = [(site.weight.bits, site.input.bits) for site in sites if site.weight and site.input]
        assert bits == [(4, 4) if number in few else (8, 8) for number in range(layers)]
    assert plan.scheme == preset("mkq")  # as it is written into a checkpoint
    assert plan.starts_calibrated


def test_halves_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "halves.toml"
    file.write_text(
        'base = "q8bert"\noverrides."layers.lower.*" = "float"\noverrides."layers.upper.ffn_*".weight.bits = 3\n'
    )
    plan = Plan.of(replace(MINILM, layers=4), HEAD, find_scheme(str(file)))
    assert [plan.of_layer(number, "key").kind for number in range(4)] == ["float", "float", "static", "static"]
    widths = [plan.of_layer(number, "ffn_out").weight for number in (2, 3)]
    assert [weight.bits for weight in widths if weight] == [3, 3]
    with pytest.raises(SchemeError, match=r"override 'layers\.lower\.\*' matches no site"):
        Plan.of(replace(MINILM, layers=1), HEAD, find_scheme(str(file)))


def test_bert_base_of_half_the_width_is_24_times_smaller() -> None:
    """All bytes, from the sizes alone: two signs for each of 42.5 million weights, 2 bits for a value of the words."""
    base = EncoderSpec(12, 768, 12, 3072, 30522, 512, 2, 1e-12)
    plan = Plan.of(replace(base, heads=6, inner=1536, own_head_size=64), HEAD, preset("binary-split"))
    matrices = 12 * (4 * 384 * 768 + 2 * 1536 * 768)
    rows = 12 * (3 * 384 + 768 + 1536 + 768)  # each with a scale and a bias
    tables, head = 30522 * (768 // 4 + 4) + 512 * (768 + 4) + 2 * 768 * 4, 768 * (768 + 8) + 2 * (768 + 8)
    inputs, levels = 12 * 6 * 8 + 2 * 8 + 12 * 2 * 4, 12 * 6 * 4 + 4
    expected = matrices // 4 + rows * 8 + tables + head + 25 * 2 * 768 * 4 + inputs + levels
    size = {"F32": 4, "I32": 4, "I8": 1, "U8": 1}
    found = sum(size[each.dtype] * int(np.prod(each.shape)) for each in plan.tensors.values())
    assert found == expected
    floats = Plan.of(base, HEAD).tensors.values()
    assert sum(4 * int(np.prod(each.shape)) for each in floats) / found > 24


def test_groups_are_stored_with_their_zero_points() -> None:
    tensors = Plan.of(MINILM, HEAD, preset("qbert-3")).tensors
    path = "layers.2.ffn_in"
    found = {name.rpartition(".")[2]: (t.dtype, t.shape) for name, t in tensors.items() if name.startswith(f"{path}.")}
    assert found == {
        "weight": ("U8", (1536, 144)),
        "weight_scale": ("F32", (128,)),
        "weight_zero_point": ("I8", (128,)),
        "weight_levels": ("I8", (8,)),
        "bias": ("I32", (1536,)),
        "input_scale": ("F32", (1,)),
        "input_zero_point": ("I32", (1,)),
    }
    assert tensors["head.output.weight_scale"].shape == (2,)
    assert Plan.of(MINILM, HEAD, preset("binary")).tensors["layers.0.key.weight"].shape == (384, 48)
    with pytest.raises(SchemeError, match=r"^layers\.0\.query: weight\.groups is 128, which does not divide its 320"):
        Plan.of(replace(MINILM, hidden=320, heads=10), HEAD, preset("qbert-4"))


@pytest.mark.parametrize("name", FEW_BITS)
def test_a_file_gives_back_the_weights_that_training_multiplied_with(name: str) -> None:
    network = make_classifier()
    plan = plan_for(network, small(name))
    model = prepared(network, small(name))
    calibrate(model, [make_batch(0)])
    found = DequantizedTensors(plan, arrays(convert(model.eval())))
    linears, tables = quantized_layers(model)
    for path, layer in (linears | tables).items():
        weight, grid = layer.weight.detach(), layer.weight_grid().rows(len(layer.weight))
        q = weight_integers(weight, layer.weight_quantizer, grid, torch.float32)
        assert np.array_equal(found[f"{path}.weight"], (q * grid.scale.reshape(-1, 1)).numpy()), path
        assert len(q.unique()) <= 2**layer.weight_quantizer.bits or layer.weight_quantizer.grid == "asymmetric"
