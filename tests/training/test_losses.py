"""The losses of tasks against those that Hugging Face's models compute themselves: equal to the bit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

from q8core.training.losses import INPUTS, network_inputs, span_loss, target_loss, task_loss
from tests.models import logits_of, network_of

ROWS, LENGTH = 5, 9


def stock(kind: str, outputs: int = 2, problem: str | None = None) -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=20,
        num_labels=outputs,
        problem_type=problem,
        initializer_range=0.3,
    )
    model = BertForQuestionAnswering(config) if kind == "qa" else BertForSequenceClassification(config)
    return model.eval()


def inputs(rows: int = ROWS) -> dict[str, Tensor]:
    ids = torch.randint(1, 60, (rows, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(LENGTH) < torch.arange(LENGTH, LENGTH - rows, -1).unsqueeze(1)).long()
    return {"input_ids": ids * mask, "token_type_ids": torch.zeros_like(ids), "attention_mask": mask}


def numbers(rows: int = ROWS) -> Tensor:
    return torch.randn(rows, generator=torch.Generator().manual_seed(2))


CASES = {
    "two classes": ("classify", 2, None, {"labels": torch.tensor([0, 1, 1, 0, 1])}),
    "five classes": ("classify", 5, "single_label_classification", {"labels": torch.tensor([4, 0, 2, 2, 3])}),
    "a number": ("classify", 1, "regression", {"labels": numbers()}),
    "a place": ("qa", 2, None, {"start_positions": torch.arange(5), "end_positions": torch.arange(5) + 3}),
    "a place behind the end": (
        "qa",
        2,
        None,
        {"start_positions": torch.tensor([0, 8, 9, 300, 4]), "end_positions": torch.tensor([8, 9, 9, 301, 30])},
    ),
    "a place before the beginning": (
        "qa",
        2,
        None,
        {"start_positions": torch.tensor([-1, 0, 1, 2, 3]), "end_positions": torch.tensor([2, -5, 1, 2, 3])},
    ),
    "places of which none is here": (
        "qa",
        2,
        None,
        {"start_positions": torch.full((5,), 99), "end_positions": torch.arange(5)},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_of_hugging_face(case: str) -> None:
    """Value and gradient with respect to the logits."""
    kind, outputs, problem, targets = CASES[case]
    model = stock(kind, outputs, problem)
    given = {name: value.clone() for name, value in targets.items()}
    output = model(**inputs(), **given)
    logits = logits_of(output).detach().requires_grad_()
    loss = target_loss(logits, targets)
    assert loss.dim() == 0
    assert same(loss.detach(), output.loss.detach())
    expected = head_gradient(model, output.loss)
    assert same(head_gradient(model, target_loss(logits_of(model(**inputs())), targets)), expected)


def head_gradient(model: nn.Module, loss: Tensor) -> Tensor:
    """The gradient that arrives at the head's bias: the sums of that of the logits."""
    (grad,) = torch.autograd.grad(loss, [dict(model.named_parameters())[name_of_head(model)]])
    return grad


def name_of_head(model: nn.Module) -> str:
    return "qa_outputs.bias" if isinstance(model, BertForQuestionAnswering) else "classifier.bias"


def same(ours: Tensor, theirs: Tensor) -> bool:
    return ours.dtype == theirs.dtype and torch.equal(ours.nan_to_num(nan=777.0), theirs.nan_to_num(nan=777.0))


def test_no_place_at_all_has_no_loss() -> None:
    """A mean over nothing, as ever: training stops with a message instead of a step by a wrong number."""
    logits = torch.randn(2, 4, 2)
    assert math.isnan(float(span_loss(logits, torch.tensor([7, 8]), torch.tensor([1, 2]))))


@pytest.mark.parametrize("rows", [1, 2])
def test_a_few_numbers_are_those_of_hugging_face(rows: int) -> None:
    """A batch's last may be a single row: nothing is broadcast against it."""
    model, targets = stock("classify", 1, "regression"), {"labels": numbers(rows)}
    output = model(**inputs(rows), **targets)
    assert torch.equal(target_loss(output.logits, targets), output.loss)
    expected = (output.logits.detach().double().reshape(-1) - targets["labels"].double()).square().mean()
    assert output.loss.item() == pytest.approx(float(expected), rel=1e-5)


def test_a_number_is_no_class() -> None:
    """The type of the labels decides, not their values."""
    logits = torch.tensor([[3.0], [5.0]])
    assert float(target_loss(logits, {"labels": torch.tensor([1.0, 1.0])})) == 10.0
    assert float(target_loss(logits, {"labels": torch.tensor([0, 0])})) == 0.0


@pytest.mark.parametrize("kind", ["classify", "qa"])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_network_on_a_batch(kind: str, bf16: bool) -> None:
    """What a network does not read of a batch are targets; under autocast the loss has Hugging Face's type."""
    model = stock(kind)
    targets = CASES["two classes" if kind == "classify" else "a place"][3]
    network, batch = network_of(model), {**inputs(), **targets}
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = task_loss(network, batch)
        logits = network(**inputs())
        assert torch.equal(loss, target_loss(logits, targets))
        assert loss.dtype == model(**batch).loss.dtype
    assert torch.isfinite(loss)
    if not bf16:
        torch.testing.assert_close(loss, model(**batch).loss, rtol=1e-6, atol=1e-7)
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_network_is_given_its_inputs_only() -> None:
    batch = {**inputs(), "labels": torch.zeros(5), "start_positions": torch.zeros(5)}
    assert set(network_inputs(batch)) == set(INPUTS)
    assert all(network_inputs(batch)[name] is batch[name] for name in INPUTS)
    assert set(network_inputs({"input_ids": torch.zeros(1, 2)})) == {"input_ids"}
