"""An answer never depends on what it was batched with."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from q8core.engines import build_engine
from q8core.engines.engine import EncoderEngine
from q8core.quant import preset
from tests.engines.conftest import (
    KERNELS,
    engine_logits,
    float_model,
    largest_difference,
    random_sequences,
    simulate,
)


@pytest.fixture(scope="module")
def engines() -> dict[str, EncoderEngine]:
    built: dict[str, EncoderEngine] = {}
    for task in ("classify", "qa"):
        made = float_model(task)
        built[f"{task} fp32"] = build_engine(made.plan, made.tensors)
        for scheme in ("q8bert", "q8bert-attention", "dynamic"):
            simulated = simulate(task, preset(scheme))
            for kernel in KERNELS:
                built[f"{task} {scheme} {kernel}"] = build_engine(simulated.plan, simulated.tensors, kernel)
    return built


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 70), min_size=2, max_size=9), seed=st.integers(0, 1000))
def test_a_sequence_alone_equals_itself_in_any_batch(
    engines: dict[str, EncoderEngine], lengths: list[int], seed: int
) -> None:
    sequences = random_sequences(lengths, seed)
    for name, engine in engines.items():
        together = engine_logits(engine, sequences)
        alone = [engine_logits(engine, [sequence])[0] for sequence in sequences]
        assert largest_difference(together, alone) <= 1e-6, name


def test_the_calling_thread_does_not_matter(engines: dict[str, EncoderEngine]) -> None:
    sequences = random_sequences([9, 30])
    for name, engine in engines.items():
        expected = engine_logits(engine, sequences)
        found: list[list[torch.Tensor]] = []
        thread = threading.Thread(target=lambda e=engine, f=found: f.append(engine_logits(e, sequences)))
        thread.start()
        thread.join()
        assert largest_difference(found[0], expected) == 0, name
