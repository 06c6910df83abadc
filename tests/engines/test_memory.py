"""What `memory` and `describe` say, against what is there."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from q8core.bench.models import bench_config
from q8core.engines import TokenBatch, build_engine
from q8core.engines.choice.random_weights import RandomInt8
from q8core.engines.layers import attention
from q8core.native.library import ISA_VARIABLE
from q8core.quant import Plan, preset
from tests.engines.conftest import KERNELS, Float, Simulated, random_sequences
from tests.engines.reachable import reachable_tensors, storage_bytes


def test_fp32_memory_is_that_of_the_tensors(floats: Float) -> None:
    engine = build_engine(floats.plan, floats.tensors)
    memory = engine.memory()
    assert memory.weights + memory.scales == storage_bytes(reachable_tensors(engine))
    assert memory.weights >= sum(p.numel() * 4 for p in floats.model.parameters() if p.dim() == 2)


def test_onednn_memory_is_that_of_the_tensors(classifier: Simulated) -> None:
    engine = build_engine(classifier.plan, classifier.tensors, "onednn")
    memory = engine.memory()
    assert memory.weights + memory.scales == storage_bytes(reachable_tensors(engine))


@pytest.mark.parametrize("kernel", KERNELS)
def test_int8_weights_take_a_byte_each(kernel: str) -> None:
    """Tiling and compensation add a little; a float copy would add three times as much."""
    config = bench_config("minilm-l6", vocab_size=3000, num_hidden_layers=2)
    plan = Plan.of(config.spec, config.head("classify"), preset("q8bert"))
    engine = build_engine(plan, RandomInt8(plan), kernel)
    if engine.describe()["exactness"] != "exact":
        pytest.skip(f"{kernel} splits weights in two bytes on this CPU (no VNNI)")
    memory = engine.memory()
    linears = 2 * (4 * 384 * 384 + 2 * 384 * 1536) + 384 * 384 + 2 * 384
    parameters = linears + (3000 + 512) * 384 + 4 * 2 * 384
    assert parameters <= memory.weights <= 1.05 * parameters


def test_workspace_follows_the_largest_batch(classifier: Simulated) -> None:
    engine = build_engine(classifier.plan, classifier.tensors, "onednn")
    assert engine.memory().workspace == 0
    for lengths, tokens in (([10], 10), ([30, 20], 50), ([5], 50)):
        engine.infer(TokenBatch.pack(random_sequences(lengths)))
        assert engine.memory().workspace == tokens * 4 * 5 * 32
    assert engine.memory().total == sum((engine.memory().weights, engine.memory().scales, engine.memory().workspace))


def test_workspace_counts_the_scores_of_quantized_products(
    attentive: Simulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build_engine(attentive.plan, attentive.tensors, "onednn")
    engine.infer(TokenBatch.pack(random_sequences([30, 20])))
    assert engine.memory().workspace == 50 * 4 * 5 * 32 + 4 * 4 * 50 * 50
    seen: list[int] = []
    exponentials = attention.exponentials

    def record(scores: torch.Tensor, factor: float, bias: torch.Tensor | None) -> torch.Tensor:
        seen.append(scores.nbytes)
        return exponentials(scores, factor, bias)

    monkeypatch.setattr(attention, "exponentials", record)
    monkeypatch.setattr(attention, "_SCORES", 4 * 30 * 30 * 2)
    engine.infer(TokenBatch.pack(random_sequences([30] * 5)))
    assert seen[:3] == [4 * 4 * 30 * 30 * count for count in (2, 2, 1)]
    assert engine.memory().workspace - 150 * 4 * 5 * 32 >= max(seen)


def test_describe_is_plain_json(classifier: Simulated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ISA_VARIABLE, "portable")  # else the native kernel is taken and nothing is timed
    engine = build_engine(classifier.plan, classifier.tensors, threads=1, facts={"scheme": "x"})
    found = engine.describe()
    assert json.loads(json.dumps(found)) == found
    assert found["kernel"] in KERNELS
    assert found["threads"] == 1
    assert found["scheme"] == "x"
    assert found["dequantized"] is False
    timings = found["kernel_microseconds"]
    assert isinstance(timings, dict)
    assert set(timings) == set(KERNELS)
    assert all(set(by) == {"16", "128"} for by in timings.values())


def test_warmup_stays_within_the_position_table(classifier: Simulated) -> None:
    engine = build_engine(classifier.plan, classifier.tensors, "onednn")
    engine.warmup()
    assert np.isfinite(engine.infer(TokenBatch.pack(random_sequences([128])))).all()
