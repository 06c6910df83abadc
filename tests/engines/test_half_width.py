"""A trained half-width model of split weights, its engines beside the network that was trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from q8core.engines import TokenBatch, build_engine
from q8core.engines.loaders.native import load_native
from q8core.engines.tensors.source import TensorSource
from q8core.model.head import HeadSpec
from q8core.model.network import Network
from q8core.model.spec import EncoderSpec
from q8core.native import variants
from q8core.quant import Plan, preset
from q8core.quant.qat.convert import arrays, convert
from q8core.quant.qat.prepare import calibrate, master_weights, prepare, quantized_layers

HALF = EncoderSpec(2, 128, 2, 128, 60, 20, 2, 1e-12, own_head_size=32)
HEAD = HeadSpec("every", 2)


def batch_of(seed: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 60, (4, 20), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": ids % 2}


@pytest.fixture(scope="module")
def trained() -> tuple[Network, Plan]:
    """After a few steps, with means of the halves that differ in one layer."""
    torch.manual_seed(0)
    network, plan = Network(HALF, HEAD), Plan.of(HALF, HEAD, preset("binary-split"))
    prepare(network, plan)
    calibrate(network, [batch_of(0)])
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    for seed in range(3):
        network(**batch_of(seed)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        weight = network.get_parameter("layers.1.ffn_in.weight")
        network.get_buffer("layers.1.ffn_in.weight_steps.difference").add_(0.3 * weight)
    return network.eval(), plan


def packed(batch: dict[str, torch.Tensor]) -> TokenBatch:
    ids, types = (batch[name].numpy().reshape(-1).astype(np.int64) for name in ("input_ids", "token_type_ids"))
    return TokenBatch(ids, types, (20,) * 4)


def test_every_engine_computes_what_was_trained(trained: tuple[Network, Plan]) -> None:
    network, plan = trained
    batch, tensors = batch_of(9), arrays(convert(network))
    other = {name: value[2] for name, value in tensors.items() if name.endswith("weight_levels") and len(value) == 4}
    assert {name for name, level in other.items() if level} >= {"layers.1.ffn_in.weight_levels"}
    assert not all(other.values())
    with torch.no_grad():
        expected = network(**batch).reshape(-1, 2).numpy()
    for kernel in ("native", "onednn"):
        found = build_engine(plan, tensors, kernel).infer(packed(batch))
        np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)
    first, *others = (
        load_native(plan, TensorSource(tensors), name).compute(packed(batch), 2)[0] for name in variants()
    )
    assert all(np.array_equal(other, first) for other in others)


def test_the_float_weights_are_the_sums_of_the_halves(trained: tuple[Network, Plan]) -> None:
    network, _ = trained
    floats, batch = arrays(master_weights(network)), batch_of(9)
    engine = build_engine(Plan.of(HALF, HEAD), floats)
    own = Network(HALF, HEAD).eval()
    own.load_state_dict({name: torch.from_numpy(value) for name, value in floats.items()})
    with torch.no_grad():
        np.testing.assert_allclose(engine.infer(packed(batch)), own(**batch).reshape(-1, 2).numpy(), atol=1e-5, rtol=0)
    layer = quantized_layers(network)[0]["layers.0.key"]
    assert np.array_equal(floats["layers.0.key.weight"], layer.weight.detach().numpy())
