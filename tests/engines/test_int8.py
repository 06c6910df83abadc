"""The int8 engine against the simulation that training uses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from q8core.arrays import Array
from q8core.engines import build_engine
from q8core.engines.engine import EncoderEngine
from q8core.engines.kernels.onednn import OnednnKernel
from q8core.engines.kernels.split import SplitKernel
from q8core.engines.layers.attention import FloatProducts, QuantizedProducts
from q8core.engines.layers.encoder import StaticFeedForward
from q8core.engines.layers.linear import FloatLinear
from q8core.engines.layers.model import Model
from q8core.engines.loaders.int8 import load_int8
from q8core.engines.tensors.source import TensorSource
from q8core.errors import CheckpointError, SchemeError
from q8core.quant import PRESETS, Plan, Scheme, preset
from tests.engines.conftest import (
    DYNAMIC,
    KERNELS,
    LABELS,
    TASKS,
    TORCH_KERNELS,
    Simulated,
    assert_same_integers,
    engine_logits,
    largest_difference,
    random_sequences,
    reference_logits,
    simulate,
)
from tests.engines.reachable import reachable_tensors
from tests.models import small
from tests.quant.test_asymmetric import symmetric

LENGTHS = [5, 12, 12, 1, 90, 3]
ODD_SITES: dict[str, Any] = {
    "layers.0.query": {"output": None},
    "layers.0.ffn_in": "float",
    "layers.1.value": "float",
    "layers.1.ffn_out": {"input": DYNAMIC},
    "word_embeddings": "float",
}
ODD_HEADS: dict[str, Any] = {"classify": "float", "qa": {"weight": {"granularity": "tensor"}}}


def odd_scheme(task: str) -> Scheme:
    """A scheme in which neighbouring layers are of different kinds, so that nothing fuses."""
    return replace(preset("q8bert"), overrides={**ODD_SITES, "head.output": ODD_HEADS[task]})


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("scheme", [*PRESETS, "symmetric", "odd"])
def test_logits_equal_the_simulation(task: str, scheme: str) -> None:
    """Sequence by sequence, so that attention adds up in the same order and only rounding of floats is left.

    Every integer agrees: see `assert_same_integers`.
    """
    # symmetric: as in checkpoints from before there were zero points
    own = {"odd": odd_scheme(task), "symmetric": symmetric()}
    simulated = simulate(task, own[scheme] if scheme in own else small(scheme))
    sequences = random_sequences(LENGTHS)
    expected = [reference_logits(task, simulated.model, [sequence])[0] for sequence in sequences]
    assert max(float(logits.abs().max()) for logits in expected) > 0.1
    # the native kernel computes weights without a 0 for whole blocks of 64 inputs only
    for kernel in TORCH_KERNELS if scheme in ("odd", "binary", "binary-split") else KERNELS:
        engine = build_engine(simulated.plan, simulated.tensors, kernel)
        assert engine.kernel == kernel
        assert_same_integers(engine_logits(engine, sequences), expected)


@pytest.mark.parametrize("task", TASKS)
def test_padding_of_the_simulation_moves_few_integers(task: str) -> None:
    """A padded batch adds up attention in another order: a value at a rounding boundary may take the other step."""
    simulated = simulate(task, preset("q8bert"))
    sequences = random_sequences(LENGTHS)
    expected = reference_logits(task, simulated.model, sequences)
    engine = build_engine(simulated.plan, simulated.tensors, "onednn")
    found = engine_logits(engine, sequences)
    assert largest_difference(found, expected) <= 5e-2
    rows = torch.cat([(a - b).abs().reshape(-1, a.shape[-1]) for a, b in zip(found, expected, strict=True)])
    assert float((rows.amax(dim=1) <= 1e-5).float().mean()) > 0.5


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_with_quantized_products_padding_moves_no_integer(task: str, kernel: str) -> None:
    """A padded batch of the simulation against packed sequences: attention is sums of integers, in any order."""
    simulated = simulate(task, preset("q8bert-attention"))
    engine = build_engine(simulated.plan, simulated.tensors, kernel)
    for seed in range(3):
        sequences = random_sequences(LENGTHS, seed)
        expected = reference_logits(task, simulated.model, sequences)
        assert_same_integers(engine_logits(engine, sequences), expected)


def test_quantized_products_in_some_layers() -> None:
    without = {f"{LAYER}.attention_products": "float", f"{LAYER}.value": {"output": None}}
    simulated = simulate("qa", replace(preset("q8bert-attention"), overrides=without))
    engine = build_engine(simulated.plan, simulated.tensors, "onednn")
    assert isinstance(engine.model, Model)
    assert [type(layer.products) for layer in engine.model.layers] == [FloatProducts, QuantizedProducts]
    sequences = random_sequences([12])
    expected = reference_logits("qa", simulated.model, sequences)
    assert largest_difference(engine_logits(engine, sequences), expected) <= 2e-6


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("scheme", ["q8bert", "q8bert-attention", "dynamic", "qbert-3", "binary", "mkq"])
def test_both_torch_kernels_give_the_same_bits(task: str, scheme: str) -> None:
    simulated = simulate(task, small(scheme))
    sequences = random_sequences(LENGTHS)
    engines = [build_engine(simulated.plan, simulated.tensors, kernel) for kernel in TORCH_KERNELS]
    found = [engine_logits(engine, sequences) for engine in engines]
    assert largest_difference(*found) == 0


def test_split_weights_give_the_same_logits(answerer: Simulated) -> None:
    kernel = SplitKernel(OnednnKernel())
    model = load_int8(answerer.plan, TensorSource(answerer.tensors), kernel)
    split = EncoderEngine(answerer.plan.head, "int8", kernel.name, model)
    plain = build_engine(answerer.plan, answerer.tensors, "onednn")
    sequences = random_sequences(LENGTHS)
    assert largest_difference(engine_logits(split, sequences), engine_logits(plain, sequences)) == 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_float_weight_of_a_linear_is_reachable(classifier: Simulated, kernel: str) -> None:
    engine = build_engine(classifier.plan, classifier.tensors, kernel)
    engine.warmup()
    matrices = [t for t in reachable_tensors(engine) if t.ndim >= 2 and "float" in str(t.dtype)]
    assert [tuple(t.shape) for t in matrices] == [(2, 32)]  # the token types, which the scheme leaves in float
    if isinstance(engine.model, Model):
        assert isinstance(engine.model.layers[0].feed_forward, StaticFeedForward)


def test_a_float_head_is_packed_as_float() -> None:
    scheme = replace(preset("q8bert"), overrides={"head.output": "float"})
    simulated = simulate("classify", scheme)
    engine = build_engine(simulated.plan, simulated.tensors, "onednn")
    assert isinstance(engine.model, Model)
    assert isinstance(engine.model.head, FloatLinear)
    assert engine.model.head.bias.shape == (LABELS,)


def broken(tensors: dict[str, Array], name: str, value: Array | None) -> dict[str, Array]:
    changed = {**tensors}
    if value is None:
        del changed[name]
    else:
        changed[name] = value
    return changed


LAYER = "layers.0"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (f"{LAYER}.ffn_out.weight", None, "is missing"),
        (f"{LAYER}.ffn_out.weight_scale", None, r"ffn_out\.weight_scale is missing"),
        (f"{LAYER}.ffn_out.input_scale", None, r"ffn_out\.input_scale is missing"),
        (f"{LAYER}.ffn_out.input_zero_point", None, r"ffn_out\.input_zero_point is missing"),
        (f"{LAYER}.ffn_out.weight_scale", np.zeros(32, np.float32), "not a positive finite number"),
        (f"{LAYER}.ffn_out.input_scale", np.array([np.nan], np.float32), "not a positive finite number"),
        (f"{LAYER}.ffn_out.weight_scale", np.ones(5, np.float32), r"has shape \(5,\); the plan says \(32,\)"),
        (f"{LAYER}.ffn_out.weight_scale", np.ones(1, np.float32), r"has shape \(1,\); the plan says \(32,\)"),
        (
            f"{LAYER}.ffn_out.output_scale",
            np.ones(1, np.float32),
            r"fit no part of the model, first: .*ffn_out\.output_scale",
        ),
        ("word_embeddings.weight_scale", None, "is missing"),
        ("layers.7.ffn_out.bias", np.zeros(1, np.float32), "fit no part of the model"),
    ],
)
def test_damaged_tensors_are_refused(classifier: Simulated, name: str, value: Array | None, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        build_engine(classifier.plan, broken(classifier.tensors, name, value), "onednn")


@pytest.mark.parametrize("slot", ["query", "key"])
def test_quantized_products_need_integer_queries_and_keys(attentive: Simulated, slot: str) -> None:
    """Neither is there a plan without them, nor does an engine of a plan with them do without the tensors."""
    overrides: dict[str, Any] = {f"{LAYER}.{slot}": {"output": None}}
    scheme, spec, head = preset("q8bert-attention"), attentive.plan.spec, attentive.plan.head
    with pytest.raises(SchemeError, match=rf"{LAYER}: .* need quantized outputs .*, but {slot} has none"):
        Plan.of(spec, head, replace(scheme, overrides=overrides))
    damaged = broken(attentive.tensors, f"{LAYER}.{slot}.output_scale", None)
    for kernel in KERNELS:
        with pytest.raises(CheckpointError, match=rf"{LAYER}\.{slot}\.output_scale is missing"):
            build_engine(attentive.plan, damaged, kernel)


def test_each_tensor_is_read_once_and_dropped(classifier: Simulated) -> None:
    """The peak of loading stays low only if nobody keeps what a lazy mapping handed out."""
    reads: list[str] = []

    class Lazy(dict[str, Array]):
        def __getitem__(self, name: str) -> Array:
            reads.append(name)
            return super().__getitem__(name).copy()

    engine = build_engine(classifier.plan, Lazy(classifier.tensors), "onednn")
    assert sorted(reads) == sorted(classifier.tensors)
    int8 = [t for t in reachable_tensors(engine) if t.dtype == torch.int8 and not t.is_mkldnn]
    assert sorted(tuple(t.shape) for t in int8) == [(60, 32), (128, 32)]  # the two int8 tables
