"""Engines against the plan: whatever differs from it is refused, and weights of every width run on every kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from q8core.arrays import Array
from q8core.checkpoint import Checkpoint
from q8core.checkpoint.manifest import INT8_FILE
from q8core.engines import TokenBatch, build_engine, load_engine
from q8core.engines.choice.random_weights import RandomInt8
from q8core.errors import CheckpointError
from q8core.evaluate import engine_logits as evaluated
from q8core.quant import Plan, Scheme, preset
from q8core.training.qat import train_quantized
from tests.engines.conftest import (
    DYNAMIC,
    KERNELS,
    TASKS,
    TORCH_KERNELS,
    Simulated,
    assert_same_integers,
    engine_logits,
    plan_for,
    random_sequences,
    reference_logits,
    simulate,
)
from tests.training.test_loop import CONFIG, make_task

EACH_KERNEL = pytest.mark.parametrize("kernel", KERNELS)
LINEARS = ("layers.0.query", "layers.0.value", "layers.1.attention_output", "layers.0.ffn_in", "head.dense")
SCALES = ("weight_scale", "input_scale", "input_zero_point", "output_scale")
SITE = "layers.0.ffn_in"
WIDTHS = {8: 8, 7: 8, 5: 8, 4: 4, 3: 3, 2: 2}
"""Bits of a weight -> how many of them a stored one takes."""


def without(tensors: dict[str, Array], *names: str) -> dict[str, Array]:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def in_float(tensors: dict[str, Array], path: str) -> dict[str, Array]:
    """The tensors of a checkpoint with one linear in float32, as a scheme without it would have them."""
    floats = {f"{path}.{leaf}": tensors[f"{path}.{leaf}"].astype(np.float32) for leaf in ("weight", "bias")}
    return {**without(tensors, *(f"{path}.{leaf}" for leaf in SCALES)), **floats}


def dynamic(tensors: dict[str, Array], path: str) -> dict[str, Array]:
    """The tensors of a checkpoint with one linear that has no fixed input range."""
    bias = {f"{path}.bias": tensors[f"{path}.bias"].astype(np.float32)}
    return {**without(tensors, *(f"{path}.{leaf}" for leaf in SCALES[1:])), **bias}


@EACH_KERNEL
@pytest.mark.parametrize("path", LINEARS)
def test_a_float_linear_in_a_scheme_that_quantizes_it_is_refused(classifier: Simulated, kernel: str, path: str) -> None:
    message = rf"^{path}\.weight is float32; the plan says int8$"
    floats = in_float(classifier.tensors, path)
    for tensors in (floats, {**classifier.tensors, **floats}):  # without its scales, and with them
        with pytest.raises(CheckpointError, match=message):
            build_engine(classifier.plan, tensors, kernel)
    bias = {f"{path}.bias": floats[f"{path}.bias"]}
    with pytest.raises(CheckpointError, match=rf"^{path}\.bias is float32; the plan says int32$"):
        build_engine(classifier.plan, {**classifier.tensors, **bias}, kernel)


@EACH_KERNEL
@pytest.mark.parametrize("path", LINEARS)
def test_a_dynamic_linear_in_a_static_scheme_is_refused(classifier: Simulated, kernel: str, path: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^{path}\.bias is float32; the plan says int32$"):
        build_engine(classifier.plan, dynamic(classifier.tensors, path), kernel)
    for leaf in ("input_scale", "input_zero_point"):
        with pytest.raises(CheckpointError, match=rf"the tensor {path}\.{leaf} is missing"):
            build_engine(classifier.plan, without(classifier.tensors, f"{path}.{leaf}"), kernel)


@EACH_KERNEL
@pytest.mark.parametrize("path", LINEARS)
def test_a_static_linear_in_a_dynamic_scheme_is_refused(classifier: Simulated, kernel: str, path: str) -> None:
    simulated = simulate("classify", preset("dynamic"))
    engine = build_engine(simulated.plan, simulated.tensors, kernel)
    assert np.isfinite(engine.infer(TokenBatch.pack(random_sequences([5])))).all()
    extra = {f"{path}.input_scale": classifier.tensors[f"{path}.input_scale"]}
    with pytest.raises(CheckpointError, match=rf"1 tensors fit no part of the model, first: {path}\.input_scale"):
        build_engine(simulated.plan, {**simulated.tensors, **extra}, kernel)
    bias = {f"{path}.bias": classifier.tensors[f"{path}.bias"]}
    with pytest.raises(CheckpointError, match=rf"^{path}\.bias is int32; the plan says float32$"):
        build_engine(simulated.plan, {**simulated.tensors, **extra, **bias}, kernel)


@EACH_KERNEL
@pytest.mark.parametrize("path", ["layers.0.value", "layers.1.ffn_out", "head.output"])
def test_an_output_scale_that_the_scheme_does_not_have_is_refused(
    classifier: Simulated, kernel: str, path: str
) -> None:
    """That of a value would make integers of the attention's products."""
    extra = {f"{path}.output_scale": np.ones(1, np.float32)}
    with pytest.raises(CheckpointError, match=rf"1 tensors fit no part of the model, first: {path}\.output_scale"):
        build_engine(classifier.plan, {**classifier.tensors, **extra}, kernel)


@EACH_KERNEL
@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("word_embeddings.weight", np.zeros((60, 32), np.float32), r"is float32; the plan says int8"),
        ("token_type_embeddings.weight", np.ones((2, 32), np.int8), r"is int8; the plan says"),
        ("embedding_norm.weight", np.ones(32, np.int32), r"is int32; the plan says float32"),
        ("layers.0.ffn_norm.bias", np.ones(1, np.float32), r"has shape \(1,\); the plan says \(32,\)"),
        ("layers.1.key.output_scale", np.ones(32, np.float32), r"has shape \(32,\); the plan says \(1,\)"),
        (
            "layers.1.key.weight",
            np.ones((32, 64), np.int8),
            r"has shape \(32, 64\); the plan says \(32, 32\)",
        ),
        ("layers.0.ffn_in.input_zero_point", np.zeros(1, np.int64), r"is int64; the plan says"),
        ("head.output.weight_scale", np.ones(1, np.float32), r"has shape \(1,\); the plan says \(3,\)"),
    ],
)
def test_other_types_and_shapes_are_refused(
    classifier: Simulated, kernel: str, name: str, value: Array, found: str
) -> None:
    assert name in classifier.tensors
    with pytest.raises(CheckpointError, match=rf"^{name} {found}"):
        build_engine(classifier.plan, {**classifier.tensors, name: value}, kernel)


@pytest.mark.parametrize("kernel", TORCH_KERNELS)
@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("float", r"weight is int8; the plan says float32"),
        ({"input": DYNAMIC}, r"bias is int32; the plan says float32"),
    ],
)
def test_static_tensors_where_an_override_has_none_are_refused(
    classifier: Simulated, kernel: str, change: Any, found: str
) -> None:
    plan = classifier.plan
    other = Plan.of(plan.spec, plan.head, replace(preset("q8bert"), overrides={SITE: change}))
    with pytest.raises(CheckpointError, match=rf"^{SITE}\.{found}"):
        build_engine(other, classifier.tensors, kernel)


def at_one_site(bits: int) -> Scheme:
    return replace(preset("q8bert"), name="one", overrides={SITE: {"weight": {"bits": bits}}})


def everywhere(bits: int) -> Scheme:
    """Products in integers, and every table and linear with weights of so many bits."""
    base = preset("q8bert-attention")
    slots = {
        slot: replace(scheme, weight=replace(scheme.weight, bits=bits)) if scheme.weight else scheme
        for slot, scheme in base.slots.items()
    }
    return replace(base, name="everywhere", slots=slots)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("bits", [bits for bits in WIDTHS if bits < 8])
@pytest.mark.parametrize("scheme", [at_one_site, everywhere])
def test_weights_of_few_bits_equal_the_simulation(task: str, bits: int, scheme: Any) -> None:
    """As weights of 8 bits do: every integer agrees, see `assert_same_integers`."""
    simulated, eight = simulate(task, scheme(bits)), simulate(task, scheme(8))
    sequences = random_sequences([5, 12, 12, 1, 90, 3])
    expected = [reference_logits(task, simulated.model, [sequence])[0] for sequence in sequences]
    others = [reference_logits(task, eight.model, [sequence])[0] for sequence in sequences]
    assert max(float((a - b).abs().max()) for a, b in zip(expected, others, strict=True)) > 1e-2  # or bits did nothing
    for kernel in KERNELS:
        engine = build_engine(simulated.plan, simulated.tensors, kernel)
        assert engine.kernel == kernel
        assert_same_integers(engine_logits(engine, sequences), expected)


@pytest.mark.parametrize("bits", WIDTHS)
def test_weights_of_few_bits_are_stored_in_fewer_bytes(bits: int) -> None:
    tensors = simulate("classify", at_one_site(bits)).tensors
    assert tensors[f"{SITE}.weight"].nbytes == 64 * 32 * WIDTHS[bits] // 8
    assert tensors["layers.1.ffn_in.weight"].nbytes == 64 * 32
    assert int(np.abs(integers(tensors, SITE, 32)).max()) == 2 ** (bits - 1) - 1


def integers(tensors: Mapping[str, Array], path: str, columns: int) -> Array:
    """The integers of a stored weight, from the definition of its codes: the first column in the lowest bits."""
    stored, levels = tensors[f"{path}.weight"], tensors.get(f"{path}.weight_levels")
    if levels is None:
        return stored
    bits = len(levels).bit_length() - 1
    row_bits = np.unpackbits(stored, axis=1, bitorder="little")[:, : columns * bits].reshape(len(stored), columns, bits)
    return levels[row_bits @ (1 << np.arange(bits))]


@EACH_KERNEL
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_a_weight_is_the_same_in_whatever_it_is_stored(bits: int, kernel: str) -> None:
    """Bit for bit, with rows that end within a byte: the integers of few bits, stored in bytes of their own."""
    sizes = {"hidden_size": 54, "num_attention_heads": 6, "intermediate_size": 75, "num_hidden_layers": 2}
    few, eight = (plan_for("classify", everywhere(each), vocab_size=50, **sizes) for each in (bits, 8))
    tensors = dict(RandomInt8(few))
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith("levels")}
    for path, site in few.sites.items():
        if site.weight is not None:
            plain[f"{path}.weight"] = integers(tensors, path, site.site.shape[-1])
    assert tensors["layers.0.ffn_out.weight"].shape == (54, -(-75 * WIDTHS[bits] // 8))
    batch = TokenBatch.pack([([id % 50 for id in ids], types) for ids, types in random_sequences([5, 33, 1, 64])])
    found, expected = (build_engine(p, t, kernel).infer(batch) for p, t in ((few, tensors), (eight, plain)))
    assert np.array_equal(found, expected)
    assert float(expected.std()) > 1e-3


@EACH_KERNEL
def test_a_weight_of_another_width_is_refused(classifier: Simulated, kernel: str) -> None:
    four = simulate("classify", at_one_site(4))
    with pytest.raises(CheckpointError, match=rf"{SITE}\.weight has shape \(64, 32\); the plan says \(64, 16\)"):
        build_engine(four.plan, classifier.tensors, kernel)
    with pytest.raises(CheckpointError, match=rf"{SITE}\.weight has shape \(64, 16\); the plan says \(64, 32\)"):
        build_engine(classifier.plan, four.tensors, kernel)


@pytest.mark.parametrize("bits", [4, 2])
def test_few_bits_from_training_to_every_kernel(bits: int, tiny_classifier: Path, tmp_path: Path) -> None:
    file, task = tmp_path / "few.toml", make_task(tiny_classifier)
    file.write_text(f'base = "q8bert"\noverrides."{SITE}" = {{ weight = {{ bits = {bits} }} }}\n')
    scores = train_quantized(str(tiny_classifier), task, CONFIG, str(file), tmp_path / "int8", "made up", False)
    stored = load_file(tmp_path / "int8" / INT8_FILE)
    assert stored[f"{SITE}.weight"].nbytes == 64 * 32 * WIDTHS[bits] // 8
    assert stored["layers.1.ffn_in.weight"].nbytes == 64 * 32
    opened = Checkpoint.open(tmp_path / "int8")
    logits: dict[str, Array] = {}
    for kernel in ("native", *KERNELS):  # the second time from the cache file
        found = np.stack(evaluated(load_engine(opened, "int8", kernel), task.dev_features()))
        assert np.array_equal(logits.setdefault(kernel, found), found)
    assert np.array_equal(logits["onednn"], logits["fbgemm"])
    assert float(np.abs(logits["native"] - logits["onednn"]).max()) < 0.02
    assert task.score(list(logits["native"])) == scores["int8"]
    floats = np.stack(evaluated(load_engine(opened, "fp32", "onednn"), task.dev_features()))
    assert float(np.abs(logits["native"] - floats).max()) < 0.1  # the weights are the same, activations are not
