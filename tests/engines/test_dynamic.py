"""Scales for each token on every kernel: alone, next to fixed ones, for rows of zeros, and the same in any batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from q8core.arrays import Array
from q8core.engines import TokenBatch, build_engine
from q8core.engines.choice.random_weights import RandomInt8
from q8core.engines.loaders.native import load_native
from q8core.engines.tensors.source import TensorSource
from q8core.native import variants
from q8core.quant import Plan, Scheme, preset
from tests.engines.conftest import (
    DYNAMIC,
    KERNELS,
    TASKS,
    assert_same_integers,
    engine_logits,
    plan_for,
    random_sequences,
    reference_logits,
    simulate,
)

FLOAT_OUTPUTS: dict[str, Any] = {"*.query": {"output": None}, "*.key": {"output": None}}
EVERYWHERE: dict[str, Any] = {"layers.*": {"input": DYNAMIC, "output": None}, "head.*": {"input": DYNAMIC}}
MIXED: dict[str, dict[str, Any]] = {
    "values": {"*.value": {"input": DYNAMIC}},
    "contexts": {"*.attention_output": {"input": DYNAMIC}},
    "feed-forward": {"*.ffn_in": {"input": DYNAMIC}, "layers.1.ffn_out": {"input": DYNAMIC}},
    "heads": {"head.*": {"input": DYNAMIC}},
    "float scores of static layers": FLOAT_OUTPUTS,
    "one layer": {"layers.0.*": {"input": DYNAMIC, "output": None}},
    "all but one layer": {**EVERYWHERE, "layers.0.ffn_out": {"input": {"granularity": "tensor", "rule": "ema"}}},
}
LONG = (5, 33, 1, 64, 130, 16, 200, 47)
"""Sequences whose inner states do not fit into the cache at once, with the sizes of `wide`."""


def mixed(overrides: dict[str, Any]) -> Scheme:
    # without smoothing, which a scale for each token does without
    return replace(preset("q8bert"), name="mixed", overrides=overrides)


def wide(task: Any) -> Plan:
    """A dynamic plan with a wide inner state, whose scales are found a few rows at a time."""
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 3000, "num_hidden_layers": 2}
    return plan_for(task, "dynamic", vocab_size=50, max_position_embeddings=200, **sizes)


def batch_of(lengths: tuple[int, ...], ids: Array | None = None) -> TokenBatch:
    ids = np.random.default_rng(1).integers(1, 50, sum(lengths)) if ids is None else ids
    return TokenBatch(ids, ids % 2, lengths)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("where", MIXED)
def test_next_to_fixed_scales_every_kernel_equals_the_simulation(task: str, where: str) -> None:
    simulated = simulate(task, mixed(MIXED[where]))
    sequences = random_sequences([5, 12, 12, 1, 90, 3])
    expected = [reference_logits(task, simulated.model, [sequence])[0] for sequence in sequences]
    for kernel in KERNELS:
        engine = build_engine(simulated.plan, simulated.tensors, kernel)
        assert engine.kernel == kernel
        assert_same_integers(engine_logits(engine, sequences), expected)


@pytest.mark.parametrize("task", TASKS)
def test_batch_threads_and_instruction_set_change_no_bit(task: str) -> None:
    plan = wide(task)
    source = RandomInt8(plan)
    models = [load_native(plan, TensorSource(source), variant) for variant in variants()]
    batch = batch_of(LONG)
    together = models[0].compute(batch, 1)[0]
    for model in models:
        for threads in (1, 2, 3):
            assert np.array_equal(model.compute(batch, threads)[0], together)
    for alone, expected in zip(
        batch.split(batch.input_ids, "every"), batch.split(together, plan.head.reads), strict=True
    ):
        found = models[0].compute(batch_of((len(alone),), alone), 2)[0]
        assert np.array_equal(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("task", TASKS)
def test_rows_at_a_time_torch_agrees(task: str) -> None:
    """An integer that fell to the other side moves logits by hundredths."""
    plan, batch = wide(task), batch_of(LONG)
    found, expected = (build_engine(plan, RandomInt8(plan), kernel).infer(batch) for kernel in ("native", "onednn"))
    difference = np.abs(found - expected).max(axis=1)
    assert float((difference <= 1e-5).mean()) >= 0.8
    assert float(difference.max()) <= 0.05


@pytest.mark.parametrize("weight", [1.0, 1e-40], ids=["zeros of one token", "subnormal magnitudes"])
def test_a_row_without_a_usable_scale_is_zeros(weight: float) -> None:
    """Token 0 is a row of zeros after the first norm; with a tiny norm weight, every row's scale would be subnormal."""
    plan = plan_for("qa", "dynamic", vocab_size=50, hidden_size=64, num_attention_heads=2, intermediate_size=96)
    tensors = dict(RandomInt8(plan))
    for name in ("position_embeddings", "token_type_embeddings"):
        tensors[f"{name}.weight"] = np.zeros_like(tensors[f"{name}.weight"])
    tensors["word_embeddings.weight"][0] = 0
    tensors["embedding_norm.weight"] = np.full(64, weight, np.float32)
    tensors["embedding_norm.bias"] = np.zeros(64, np.float32)
    batch = batch_of((6, 1), np.array([7, 0, 3, 9, 0, 5, 0]))
    found = [build_engine(plan, tensors, kernel).infer(batch) for kernel in KERNELS]
    assert np.isfinite(found[0]).all()
    for other in found[1:]:
        np.testing.assert_allclose(found[0], other, rtol=0, atol=1e-5)


def test_auto_may_choose_the_native_kernel() -> None:
    simulated = simulate("classify", preset("dynamic"))
    assert "native" not in build_engine(simulated.plan, simulated.tensors, "auto").describe()["kernels_refused"]  # type: ignore[operator]


def test_mapped_weights_give_the_same_bits(empty_cache: Path) -> None:
    simulated = simulate("classify", preset("dynamic"))
    engines = [
        build_engine(simulated.plan, simulated.tensors, "native", sha256=sha256)
        for sha256 in (None, "cd" * 32, "cd" * 32)
    ]
    private, *mapped = (engine.infer(TokenBatch.pack(random_sequences([9, 30]))) for engine in engines)
    for each in mapped:
        assert np.array_equal(each, private)
