from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from q8core.bench.training_steps import labelled
from q8core.bench.workloads import random_batch
from q8core.quant import preset
from q8core.quant.qat.prepare import prepare
from q8core.training.config import TrainConfig
from q8core.training.loop import make_optimizer
from q8core.training.losses import task_loss
from q8core.training.step import clipped_update, training_step
from tests.models import network_of, plan_of


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 30), nn.GELU(), nn.Linear(30, 3))


@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 1e3])
def test_an_update_is_that_of_torchs_clipping(max_norm: float) -> None:
    """Up to the rounding of a division instead of a product, a few ulps; Adam's first steps ignore the scale itself."""
    config = TrainConfig(learning_rate=1e-2, grad_clip=max_norm)
    ours, theirs = make_model(), make_model()
    optimizers = make_optimizer(ours, config), make_optimizer(theirs, config)
    generator = torch.Generator().manual_seed(1)
    for step in range(4):
        x = torch.randn(16, 40, generator=generator) * 10.0**step
        for model in (ours, theirs):
            model(x).square().mean().backward()
        clipped_update(optimizers[0], max_norm)
        nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
        optimizers[1].step()
        for optimizer in optimizers:
            optimizer.zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for a, b in zip(optimizers[0].state.values(), optimizers[1].state.values(), strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-5 * float(b[name].abs().max()))


def test_small_gradients_are_not_touched() -> None:
    model = make_model()
    optimizer = make_optimizer(model, TrainConfig())
    model(torch.randn(4, 40)).sum().mul(1e-3).backward()
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    clipped_update(optimizer, 10.0)
    assert all(torch.equal(p.grad, b) for p, b in zip(model.parameters(), before, strict=True) if p.grad is not None)


def test_a_step_clears_gradients_and_returns_the_loss() -> None:
    model, x = make_model(), torch.ones(2, 40)
    config = TrainConfig(learning_rate=1e-4)
    optimizer, losses = make_optimizer(model, config), list[float]()

    def loss_of() -> Tensor:
        loss = model(x).square().mean()
        losses.append(float(loss.detach()))
        return loss

    assert training_step(loss_of, optimizer, config) == losses[0]
    assert all(p.grad is None for p in model.parameters())
    training_step(loss_of, optimizer, config)
    assert losses[1] < losses[0]


@pytest.mark.parametrize(("precision", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_only_the_forward_pass_is_under_autocast(precision: str, expected: torch.dtype) -> None:
    config = TrainConfig(precision=precision)  # pyright: ignore[reportArgumentType]
    model, dtypes = make_model(), list[torch.dtype]()
    model.register_forward_hook(lambda _module, _args, output: dtypes.append(output.dtype))
    training_step(lambda: model(torch.ones(2, 40)).float().sum(), make_optimizer(model, config), config)
    assert dtypes == [expected]
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("scheme", ["q8bert", "q8bert-attention"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_gives_the_same_bits(precision: str, scheme: str) -> None:
    """Large enough for several threads in every pass and product."""
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "num_hidden_layers": 2}
    batch = labelled(random_batch((32, 20, 27, 32) * 4, 200))
    states: list[dict[str, Tensor]] = []
    for _ in range(2):
        torch.manual_seed(3)
        stock = BertForSequenceClassification(BertConfig(vocab_size=200, **sizes))
        model = prepare(network_of(stock, 0.1), plan_of(stock, preset(scheme))).train()
        config = TrainConfig(precision=precision)  # pyright: ignore[reportArgumentType]
        optimizer = make_optimizer(model, config)
        for _ in range(5):
            training_step(lambda model=model: task_loss(model, batch), optimizer, config)
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_broken_gradient_is_not_hidden() -> None:
    """As after clip_grad_norm_: the next loss is NaN, instead of a step that looks fine."""
    model = make_model()
    optimizer = make_optimizer(model, TrainConfig())
    (model(torch.ones(2, 40)).sum() * math.nan).backward()
    clipped_update(optimizer, 1.0)
    assert all(bool(p.isnan().all()) for p in model.parameters())
