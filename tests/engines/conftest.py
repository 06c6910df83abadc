"""Tiny real models, their simulations and their engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

from q8core.engines import TokenBatch
from q8core.quant import calibrate, convert, prepare, preset
from tests.conftest import tiny_config

VOCABULARY = 60
LABELS = 3
TASKS = ("classify", "qa")
TORCH_KERNELS = ("fbgemm", "onednn")
KERNELS = ("native", *TORCH_KERNELS)

Sequences = Sequence[tuple[Sequence[int], Sequence[int]]]


@dataclass(frozen=True)
class Float:
    """A Hugging Face model with the task it is for."""

    task: Any
    config: BertConfig
    model: Any


@dataclass(frozen=True)
class Simulated:
    """A prepared, calibrated model in evaluation mode and its converted tensors."""

    task: Any
    config: BertConfig
    model: Any
    tensors: dict[str, Tensor]


def float_model(task: str, seed: int = 0) -> Float:
    torch.manual_seed(seed)
    if task == "classify":
        config = tiny_config(VOCABULARY, num_labels=LABELS)
        model: Any = BertForSequenceClassification(config)
    else:
        config = tiny_config(VOCABULARY)
        model = BertForQuestionAnswering(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-0.3, 0.3)
            elif "LayerNorm" in name:
                parameter.uniform_(0.5, 1.5)
    return Float(task, config, model.eval())


def simulate(task: str, scheme: Any) -> Simulated:
    made = float_model(task)
    prepared = prepare(made.model, scheme)
    if any(slot.activation == "ema" for slot in scheme.slots.values()):
        calibrate(prepared, [padded(random_sequences([17, 4, 30, 9], seed=9))])
    prepared.eval()
    return Simulated(task, made.config, prepared, convert(prepared))


def random_sequences(lengths: Sequence[int], seed: int = 0) -> Sequences:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randint(VOCABULARY, (length,), generator=generator).tolist(),
            torch.randint(2, (length,), generator=generator).tolist(),
        )
        for length in lengths
    ]


def padded(sequences: Sequences) -> dict[str, Tensor]:
    longest = max(len(ids) for ids, _ in sequences)
    names = ("input_ids", "token_type_ids", "attention_mask")
    batch = {name: torch.zeros(len(sequences), longest, dtype=torch.int64) for name in names}
    for row, (ids, types) in enumerate(sequences):
        batch["input_ids"][row, : len(ids)] = torch.tensor(ids)
        batch["token_type_ids"][row, : len(ids)] = torch.tensor(types)
        batch["attention_mask"][row, : len(ids)] = 1
    return batch


def reference_logits(task: str, model: Any, sequences: Sequences) -> list[Tensor]:
    """Hugging Face's own forward pass on a padded batch, cut to each sequence."""
    with torch.no_grad():
        out = model(**padded(sequences))
    if task == "classify":
        return list(out.logits)
    both = torch.stack([out.start_logits, out.end_logits], dim=-1)
    return [both[row, : len(ids)] for row, (ids, _) in enumerate(sequences)]


def engine_logits(engine: Any, sequences: Sequences) -> list[Tensor]:
    batch = TokenBatch.pack(sequences)
    return batch.split(engine.infer(batch))


def assert_same_integers(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Every integer agrees, but for one at a rounding boundary, in one sequence: torch's exp and erf differ by CPU.

    An integer that is another moves a logit by thousandths or more; a wrong scale or zero point moves all sequences.
    """
    differences = sorted(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    assert differences[-1] <= 5e-2
    assert all(difference <= 2e-6 for difference in differences[:-1])


def largest_difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


@pytest.fixture(scope="session", params=TASKS)
def floats(request: pytest.FixtureRequest) -> Float:
    return float_model(request.param)


@pytest.fixture(scope="session")
def classifier() -> Simulated:
    return simulate("classify", preset("q8bert"))


@pytest.fixture(scope="session")
def attentive() -> Simulated:
    """A classifier with quantized attention products."""
    return simulate("classify", preset("q8bert-attention"))


@pytest.fixture(scope="session")
def answerer() -> Simulated:
    return simulate("qa", preset("q8bert"))
