"""The original's DYNAMIC mode against an oracle in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertForSequenceClassification

from q8core.reproduce.batch_dynamic import BatchDynamicLinear, simulate_batch_dynamic
from q8core.training.batches import collate
from tests.models import network_of
from tests.training.test_loop import make_task


def on_grid(x: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Integers and step of a tensor, in float64, ties to even."""
    step = float(x.abs().max()) / 127
    return (x.double() / step).round().clamp(-127, 127), step


@pytest.mark.parametrize("requantize", [False, True])
def test_a_layer_is_integers_with_one_scale_for_the_batch(requantize: bool) -> None:
    torch.manual_seed(3)
    linear = nn.Linear(64, 32)
    x = torch.randn(4, 7, 64) * torch.linspace(0.1, 20, 4).reshape(4, 1, 1)
    x_q, step_x = on_grid(x)
    w_q, step_w = on_grid(linear.weight.detach())
    b_q = (linear.bias.detach().double() / (step_x * step_w)).round()
    expected = (x_q @ w_q.T + b_q) * (step_x * step_w)
    if requantize:
        y_q, step_y = on_grid(expected)
        expected = y_q * step_y
    found = BatchDynamicLinear(linear, requantize_output=requantize)(x)
    # a product near a tie of the last grid may land on either side of it
    tolerance = 1.01 * step_y if requantize else 1e-4
    assert float((found - expected).abs().max()) <= tolerance
    assert float((found - expected).abs().median()) < 1e-5


def test_the_model_has_the_papers_layers_and_stays_near_fp32(tiny_classifier: Path) -> None:
    batch = collate(make_task(tiny_classifier).dev_features(), "classify", with_targets=False)
    theirs = BertForSequenceClassification.from_pretrained(tiny_classifier).eval()
    model = network_of(theirs)
    with torch.no_grad():
        expected = theirs(**batch).logits
        found = simulate_batch_dynamic(model)(**batch)
    assert not torch.equal(found, expected)
    assert float((found - expected).abs().max()) < 0.25 * float(expected.max() - expected.min())
    assert torch.equal(
        model.get_parameter("token_type_embeddings.weight"), theirs.bert.embeddings.token_type_embeddings.weight
    )
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, BatchDynamicLinear)}
    assert len(layers) == 2 * 6 + 2
    assert not any(type(module) is nn.Linear for module in model.modules())
    requantized = {path.split(".")[-1] for path, layer in layers.items() if layer.requantize_output}
    assert requantized == {"query", "key"}
    table = model.word_embeddings.weight.detach()
    steps, _ = on_grid(table)
    assert torch.allclose(table.double(), steps * (float(table.abs().max()) / 127), atol=1e-6)
