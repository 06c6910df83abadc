"""Models cut to a share of their width: what is important, what stays, and what a cut model is on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from q8core.checkpoint import Checkpoint
from q8core.checkpoint.config import parse_config
from q8core.engines import load_engine
from q8core.errors import CheckpointError, InputError, TrainingError
from q8core.evaluate import evaluate_engine
from q8core.model.families import FAMILIES
from q8core.model.head import HeadSpec
from q8core.model.network import Network
from q8core.model.spec import EncoderSpec
from q8core.model.weights import load_network
from q8core.training.finetune import finetune
from q8core.training.losses import task_loss
from q8core.training.width import cut, importance, load_to_train
from tests.training.test_loop import CONFIG, make_task

BERT = EncoderSpec(2, 32, 4, 48, vocabulary=60, positions=20, token_types=2, norm_epsilon=1e-12)
MPNET = EncoderSpec(2, 32, 4, 48, 60, 20, 0, 1e-5, first_position=2, relative_buckets=32, pad_token=1)
HEAD = HeadSpec("first", 3, "tanh")


def network(spec: EncoderSpec = BERT) -> Network:
    torch.manual_seed(0)
    made = Network(spec, HEAD)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def batch_of(seed: int) -> dict[str, Tensor]:
    ids = torch.randint(2, 60, (3, 20), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    types = torch.zeros_like(ids)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "labels": torch.arange(3)}


def test_importance_is_how_the_loss_changes_with_a_factor_on_a_heads_or_neurons_output() -> None:
    model, batches = network().double().eval(), [batch_of(1), batch_of(2)]
    found = importance(model, batches)

    def by_factor(path: str, columns: slice) -> float:
        weight, total = model.get_parameter(f"{path}.weight"), 0.0
        for batch in batches:
            losses: list[float] = []
            for factor in (1 + 1e-5, 1 - 1e-5):
                before = weight.detach().clone()
                with torch.no_grad():
                    weight[:, columns] *= factor
                    losses.append(float(task_loss(model, batch)))
                    weight.copy_(before)
            total += abs(losses[0] - losses[1]) / 2e-5
        return total

    for layer in range(2):
        heads = [by_factor(f"layers.{layer}.attention_output", slice(8 * head, 8 * head + 8)) for head in range(4)]
        assert found.heads[layer].tolist() == pytest.approx(heads, rel=1e-4, abs=1e-8)
        neurons = [by_factor(f"layers.{layer}.ffn_out", slice(n, n + 1)) for n in (0, 17, 47)]
        assert found.neurons[layer, [0, 17, 47]].tolist() == pytest.approx(neurons, rel=1e-4, abs=1e-8)


def test_a_network_cut_to_all_of_its_width_is_itself() -> None:
    model = network()
    tensors = cut(model, importance(model, [batch_of(1)]), BERT)
    assert all(torch.equal(tensors[name], parameter) for name, parameter in model.named_parameters())
    config = parse_config({"model_type": "bert"}, "it")
    assert config.narrower(1.0) is config


@pytest.mark.parametrize("spec", [BERT, MPNET], ids=["bert", "mpnet"])
def test_what_changes_nothing_is_what_goes(spec: EncoderSpec) -> None:
    """Heads that share biases by position are the same in all layers."""
    model, batch = network(spec).eval(), batch_of(3)
    with torch.no_grad():
        for layer in range(2):
            for head in (0, 2) if layer == 0 or spec is MPNET else (1, 2):
                model.get_parameter(f"layers.{layer}.attention_output.weight")[:, 8 * head : 8 * head + 8] = 0
            model.get_parameter(f"layers.{layer}.ffn_out.weight")[:, layer::2] = 0
    half = replace(spec, heads=2, inner=24, own_head_size=8)
    tensors = cut(model, importance(model, [batch_of(1)]), half)
    narrow = load_network(half, HEAD, tensors).eval()
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        torch.testing.assert_close(narrow(**inputs), model(**inputs), atol=1e-5, rtol=0)


def test_derivatives_that_are_not_finite_choose_nothing() -> None:
    model = network()
    with torch.no_grad():
        model.get_parameter("head.output.bias")[0] = float("nan")
    with pytest.raises(TrainingError, match="derivatives of the loss are infinite or NaN"):
        importance(model, [batch_of(1)])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_narrower(family: str) -> None:
    config = parse_config({"model_type": family}, "it").narrower(0.5)
    whole = parse_config({"model_type": family}, "it").spec
    assert (config.spec.heads, config.spec.inner) == (whole.heads // 2, whole.inner // 2)
    assert (config.spec.head_size, config.spec.hidden) == (whole.head_size, whole.hidden)


def test_a_cut_model_is_trained_written_and_read(tiny_classifier: Path, tmp_path: Path) -> None:
    task, config = make_task(tiny_classifier), replace(CONFIG, width=0.5, epochs=2, dropout=0.0)
    scores = finetune(str(tiny_classifier), task, config, tmp_path / "half", "made up")
    opened = Checkpoint.open(tmp_path / "half")
    spec = opened.config.spec
    assert (spec.heads, spec.head_size, spec.attention, spec.inner, spec.hidden) == (2, 8, 16, 32, 32)
    assert evaluate_engine(load_engine(opened, "fp32"), task) == scores["fp32"]
    values = json.loads((tmp_path / "half" / "config.json").read_text())
    assert (values["head_dim"], values["num_attention_heads"], values["intermediate_size"]) == (8, 2, 32)
    assert json.loads((tmp_path / "half" / "training.json").read_text())["config"]["width"] == 0.5
    again = load_to_train(str(tmp_path / "half"), task, replace(config, width=0.5))
    assert (again.config.spec.heads, again.config.spec.inner) == (1, 16)


def test_a_head_that_is_not_trained_chooses_nothing(tiny_qa: Path, tiny_classifier: Path) -> None:
    task = make_task(tiny_classifier)
    with pytest.raises(CheckpointError, match="was not fine-tuned for this task"):
        load_to_train(str(tiny_qa), task, replace(CONFIG, width=0.5))
    with pytest.raises(InputError, match="width is 0, out of its range"):
        replace(CONFIG, width=0)
