"""Asymmetric inputs in every int8 kernel: exact sums, the same answers, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from q8core.arrays import Array
from q8core.checkpoint import Checkpoint
from q8core.checkpoint.layout import check_layout
from q8core.checkpoint.tensors import TensorFile, write_tensors
from q8core.engines import build_engine, load_engine
from q8core.engines.choice.int8_kernels import accumulate
from q8core.engines.choice.random_weights import RandomInt8
from q8core.engines.kernels.linear_kernel import LinearKernel
from q8core.engines.loaders.native import load_native
from q8core.engines.tensors.source import TensorSource
from q8core.errors import CheckpointError
from q8core.evaluate import engine_logits
from q8core.native import variants
from q8core.quant import Plan
from q8core.quant.ops.arithmetic import quantize
from q8core.training.qat import train_quantized
from tests.arrays import batch_of
from tests.engines.conftest import (
    KERNELS,
    TASKS,
    largest_difference,
    plan_for,
    random_sequences,
    reference_logits,
    simulate,
)
from tests.engines.conftest import engine_logits as logits_of
from tests.engines.test_kernels import EACH_EXACT_KERNEL, EACH_KERNEL, ONE
from tests.engines.test_native import SIZES
from tests.quant.test_asymmetric import asymmetric, symmetric
from tests.training.test_loop import CONFIG, make_task

ZERO_POINTS = (0, 6, 128, 254)


def operands(zero_point: int, size: int) -> tuple[Tensor, Tensor]:
    """int64 activations at the ends of their range, then random ones; weights at theirs, likewise."""
    generator = torch.Generator().manual_seed(size + zero_point)
    column = torch.arange(size)
    high, low = (torch.full((size,), end - zero_point) for end in (255, 0))
    ends = [high, low, torch.where(column % 2 == 0, high, low), torch.where(column // 2 % 2 == 0, high, low)]
    x = torch.cat([torch.stack(ends), torch.randint(256, (29, size), generator=generator) - zero_point])
    signs = torch.stack([column * 0 + 1, column * 0 - 1, 1 - 2 * (column % 2), 1 - 2 * (column // 2 % 2)])
    return x, torch.cat([127 * signs, torch.randint(-127, 128, (12, size), generator=generator)])


@pytest.mark.parametrize("size", [384, 3072])
@pytest.mark.parametrize("zero_point", ZERO_POINTS)
def test_accumulators_of_the_native_kernel_equal_int64_sums(zero_point: int, size: int) -> None:
    x, weight = operands(zero_point, size)
    for variant in variants():
        assert np.array_equal(accumulate(variant, x.numpy(), weight.numpy(), zero_point), x @ weight.T), variant


@EACH_EXACT_KERNEL
@pytest.mark.parametrize("size", [384, 3072])
@pytest.mark.parametrize("zero_point", ZERO_POINTS)
def test_accumulators_equal_int64_sums(kernel: LinearKernel, zero_point: int, size: int) -> None:
    """Bit for bit; but oneDNN makes a float of the sum of unsigned bytes, which rounds it if it exceeds 2**24."""
    x, weight = operands(zero_point, size)
    packed = kernel.pack(weight.to(torch.int8), ONE, None, zero_point)
    for rows in (1, 8, 33):
        found, expected = packed.linear(kernel.quantize(x[:rows].float(), ONE, zero_point)), x[:rows] @ weight.T
        rounded = ((x[:rows] + zero_point) @ weight.T).abs() > 2**24
        if "onednn" not in kernel.name:
            rounded.zero_()
        assert torch.equal(found[~rounded], expected.float()[~rounded])
        assert not rounded.any() or float((found.double() - expected)[rounded].abs().max()) <= 4


@EACH_KERNEL
@settings(max_examples=50, deadline=None)
@given(half=st.integers(0, 127), numerator=st.integers(-600, 600), exponent=st.integers(-12, 4))
def test_quantizing_is_the_contract_ties_included(
    kernel: LinearKernel, half: int, numerator: int, exponent: int
) -> None:
    zero_point, scale = 2 * half, torch.tensor([2.0**exponent])
    x = ((torch.arange(16).float() + numerator) / 2 * scale).reshape(2, 8)
    found = kernel.quantize(x, scale, zero_point)
    integers = found.float() - zero_point if found.dtype == torch.uint8 else found
    assert torch.equal(integers, quantize(x, scale, zero_point))


@EACH_EXACT_KERNEL
def test_a_layer_is_the_contracts_formula(kernel: LinearKernel) -> None:
    torch.manual_seed(1)
    x, weight = operands(6, 96)
    r, bias, residual = torch.rand(16) * 1e-4, torch.randn(16), torch.randn(33, 16)
    y = (x @ weight.T).float() * r + bias
    packed = kernel.pack(weight.to(torch.int8), r, bias, 6)
    x_q = kernel.quantize(x.float(), ONE, 6)
    assert torch.equal(packed.linear(x_q), y)
    assert torch.equal(packed.linear_add(x_q, residual.clone()), y + residual)
    scale = torch.tensor([0.004])
    found = packed.linear_gelu_quantize(x_q, scale, 20)
    integers = found.float() - 20 if found.dtype == torch.uint8 else found
    assert torch.equal(integers, quantize(F.gelu(y), scale, 20))
    assert integers.max() == 235


def random_tensors(plan: Plan) -> dict[str, Array]:
    """Random weights whose inputs have zero points all over the range; those of each Q, K, V: equal, or not."""
    tensors = dict(RandomInt8(plan))
    for place, path in enumerate([name.removesuffix(".input_scale") for name in tensors if "input_scale" in name]):
        same = path in ("layers.0.query", "layers.0.key", "layers.0.value")
        zero_point = 128 if same else 2 * (place * 37 % 50 + 39)
        zero_point = 240 if path == "layers.1.value" else zero_point  # so high that it clips
        tensors[f"{path}.input_zero_point"] = np.array([zero_point], np.int32)
    return tensors


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("scheme", ["q8bert", "q8bert-attention"])
@pytest.mark.parametrize(("hidden", "heads", "inner"), SIZES)
def test_every_variant_gives_the_same_bits_and_torch_the_same_answers(
    task: Any, scheme: str, hidden: int, heads: int, inner: int
) -> None:
    plan = plan_for(
        task,
        scheme,
        vocab_size=50,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=inner,
        num_hidden_layers=2,
        max_position_embeddings=200,
    )
    tensors, lengths = random_tensors(plan), (5, 33, 1, 64, 130, 16)
    ids = torch.randint(50, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    batch = batch_of(ids, ids % 2, lengths)
    found = [load_native(plan, TensorSource(tensors), variant).logits(batch) for variant in variants()]
    assert all(np.array_equal(each, found[0]) for each in found)
    reference = build_engine(plan, tensors, "onednn").infer(batch)
    assert np.array_equal(reference, build_engine(plan, tensors, "fbgemm").infer(batch))
    difference = np.abs(found[0] - reference).max(axis=1)
    assert float((difference <= 1e-5).mean()) >= 0.8
    assert float(difference.max()) <= 0.05


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("scheme", ["static", "static-attention"])
@pytest.mark.parametrize("slots", [(), ("key", "ffn_out")])
def test_engine_and_simulation_agree(kernel: str, scheme: str, slots: tuple[str, ...]) -> None:
    simulated = simulate("qa", asymmetric(scheme, *slots))
    engine = build_engine(simulated.plan, simulated.tensors, kernel)
    sequences = random_sequences([3, 17, 1, 40, 8])
    expected = reference_logits("qa", simulated.model, sequences)
    spread = max(float(each.abs().max()) for each in expected)
    assert largest_difference(logits_of(engine, sequences), expected) < 0.02 * spread


def test_from_training_to_every_kernel(tiny_classifier: Path, tmp_path: Path) -> None:
    file, task = tmp_path / "asymmetric.toml", make_task(tiny_classifier)
    file.write_text('base = "q8bert"\nlinears.input = { grid = "asymmetric" }\n')
    scores = train_quantized(str(tiny_classifier), task, CONFIG, str(file), tmp_path / "int8", "made up", True)
    opened = Checkpoint.open(tmp_path / "int8")
    points = [int(t.item()) for name, t in opened.quantized_tensors().items() if name.endswith("input_zero_point")]
    assert len(points) == 14
    assert any(point != 128 for point in points)
    logits: dict[str, Array] = {}
    for kernel in ("native", *KERNELS):  # the second time from the cache file
        found = np.stack(engine_logits(load_engine(opened, "int8", kernel), task.dev_features()))
        assert np.array_equal(logits.setdefault(kernel, found), found)
    assert np.array_equal(logits["onednn"], logits["fbgemm"])
    assert float(np.abs(logits["native"] - logits["onednn"]).max()) < 0.02
    assert task.score(list(logits["native"])) == scores["int8"]


@pytest.mark.parametrize("zero_point", [7, -2, 256])
def test_other_zero_points_are_refused(zero_point: int) -> None:
    simulated = simulate("classify", asymmetric("static"))
    tensors = {**simulated.tensors, "head.output.input_zero_point": np.array([zero_point], np.int32)}
    with pytest.raises(CheckpointError, match=f"zero_point is {zero_point}; a zero point is an even number from 0"):
        build_engine(simulated.plan, tensors, "onednn")


def test_zero_points_are_there_where_the_scheme_says_and_nowhere_else(tmp_path: Path) -> None:
    simulated = simulate("classify", asymmetric("static", "ffn_out"))
    name, file = "layers.1.ffn_out.input_zero_point", tmp_path / "model.safetensors"
    nowhere = Plan.of(simulated.plan.spec, simulated.plan.head, symmetric("static"))

    def check(tensors: dict[str, Array], plan: Plan) -> None:
        write_tensors(file, tensors)
        check_layout(TensorFile(file), {}, plan)

    check(simulated.tensors, simulated.plan)
    with pytest.raises(CheckpointError, match=rf"tensors that its scheme symmetric does not have: .*{name}"):
        check(simulated.tensors, nowhere)
    without = {key: tensor for key, tensor in simulated.tensors.items() if key != name}
    with pytest.raises(CheckpointError, match=f"lacks the tensor {name}"):
        check(without, simulated.plan)
    for kernel in KERNELS:  # and engines see for themselves, whatever has been checked
        build_engine(simulated.plan, simulated.tensors, kernel)
        with pytest.raises(CheckpointError, match=f"fit no part of the model, first: .*{name}"):
            build_engine(nowhere, simulated.tensors, kernel)
        with pytest.raises(CheckpointError, match=f"{name} is missing"):
            build_engine(simulated.plan, without, kernel)
