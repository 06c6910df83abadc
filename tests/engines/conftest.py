"""Tiny real models, their simulations and their engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertForQuestionAnswering, BertForSequenceClassification

from q8core.arrays import Array
from q8core.bench.models import bench_config
from q8core.engines import TokenBatch
from q8core.model.network import Network
from q8core.native import library, variants
from q8core.native.library import VARIANT_NAMES
from q8core.quant import Plan, Scheme, preset
from q8core.quant.qat.convert import arrays, convert
from q8core.quant.qat.prepare import calibrate, prepare
from tests.conftest import tiny_config
from tests.engines.stand_in import compiled_for_avx2
from tests.models import logits_of, network_of, plan_of, site_tensors

VOCABULARY = 60
LABELS = 3
TASKS = ("classify", "qa")
TORCH_KERNELS = ("fbgemm", "onednn")
KERNELS = ("native", *TORCH_KERNELS)

DYNAMIC = {"grid": "symmetric", "granularity": "token", "rule": "max"}
"""An input with a scale for each token, as overrides say it."""

EACH_VARIANT = pytest.mark.parametrize("variant", VARIANT_NAMES)
"""The native kernel's variants, for tests with the fixture `every_variant`."""

Sequences = Sequence[tuple[Sequence[int], Sequence[int]]]


@dataclass(frozen=True)
class Float:
    """A Hugging Face model with the task it is for, and its plan and tensors in our words."""

    task: Any
    model: Any
    plan: Plan
    tensors: dict[str, Array]


@dataclass(frozen=True)
class Simulated:
    """A prepared, calibrated network in evaluation mode, its plan and its converted tensors."""

    task: Any
    model: Network
    plan: Plan
    tensors: dict[str, Array]


def float_model(task: str, seed: int = 0) -> Float:
    torch.manual_seed(seed)
    if task == "classify":
        model: Any = BertForSequenceClassification(tiny_config(VOCABULARY, num_labels=LABELS))
    else:
        model = BertForQuestionAnswering(tiny_config(VOCABULARY))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-0.3, 0.3)
            elif "LayerNorm" in name:
                parameter.uniform_(0.5, 1.5)
    return Float(task, model.eval(), plan_of(model), arrays(site_tensors(model)))


def simulate(task: str, scheme: Scheme) -> Simulated:
    made = float_model(task)
    plan = plan_of(made.model, scheme)
    prepared = prepare(network_of(made.model), plan)
    if scheme.needs_ranges:
        calibrate(prepared, [padded(random_sequences([17, 4, 30, 9], seed=9))])
    prepared.eval()
    return Simulated(task, prepared, plan, arrays(convert(prepared)))


def plan_for(task: Any, scheme: str | Scheme | None = "q8bert", /, **sizes: int) -> Plan:
    """The plan of a BERT of these sizes, fields of a config, in a scheme or in float: for random weights."""
    config = bench_config("bert-base", **sizes)
    return Plan.of(config.spec, config.head(task), preset(scheme) if isinstance(scheme, str) else scheme)


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
    """The forward pass of Hugging Face's model, or of a simulation, on a padded batch, cut to each sequence."""
    with torch.no_grad():
        out = model(**padded(sequences))
    logits = out if isinstance(out, Tensor) else logits_of(out)
    if task == "classify":
        return list(logits)
    return [logits[row, : len(ids)] for row, (ids, _) in enumerate(sequences)]


def engine_logits(engine: Any, sequences: Sequences) -> list[Tensor]:
    batch = TokenBatch.pack(sequences)
    return [torch.from_numpy(logits) for logits in batch.split(engine.infer(batch), engine.reads)]


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


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Variants that were compiled for another instruction set: name -> address."""
    return {}


@pytest.fixture
def every_variant(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    stand_ins: dict[str, int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Let a test run the variant that it is for, compiled for AVX2 where this CPU has no more."""
    variant = request.node.callspec.params.get("variant") if hasattr(request.node, "callspec") else None
    if variant is None or variant in variants():
        return
    if variant not in stand_ins:
        stand_ins[variant] = compiled_for_avx2(variant, tmp_path_factory.getbasetemp().parent)
    found = {variant: stand_ins[variant], **variants()}
    monkeypatch.setattr(library, "_runnable", lambda: found)
