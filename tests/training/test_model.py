from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, BertForQuestionAnswering, BertForSequenceClassification

from q8core.errors import InputError
from q8core.model.head import TaskKind
from q8core.tasks.glue import GLUE
from q8core.training.model import load_model, put_in_order
from q8core.training.recipe import load_recipe
from tests.conftest import save_tiny
from tests.models import logits_of, site_tensors

CLASSES, NUMBER = ("no", "yes"), ("LABEL_0",)


@pytest.mark.parametrize("before", [None, "regression", "single_label_classification"])
@pytest.mark.parametrize("labels", [CLASSES, NUMBER])
def test_the_problem_type_is_the_tasks_not_the_sources(
    tiny_classifier: Path, tmp_path: Path, before: str | None, labels: tuple[str, ...]
) -> None:
    BertForSequenceClassification.from_pretrained(tiny_classifier).bert.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_classifier).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "problem_type": before}))
    model = load_model(str(tmp_path), "classify", labels)
    assert model.config.labels == labels
    assert model.plan().head.outputs == len(labels)
    assert model.network.get_parameter("head.output.weight").shape == (len(labels), 32)
    assert (model.config.problem_type == "regression") == (labels == NUMBER)


def test_a_head_for_other_labels_is_named(tiny_classifier: Path) -> None:
    for labels in (NUMBER, ("a", "b", "c")):
        with pytest.raises(InputError, match=f"a head with 2 outputs, this task needs {len(labels)}"):
            load_model(str(tiny_classifier), "classify", labels)


def test_a_head_is_put_into_the_order_of_the_tasks_labels(tmp_path: Path) -> None:
    names = ("Neutral", "contradiction", "entailment")
    source = save_tiny(tmp_path / "other", "classify", labels=names)
    wanted = ("entailment", "neutral", "contradiction")
    inputs = {"input_ids": torch.tensor([[2, 60, 61, 62, 3]])}
    with torch.no_grad():
        theirs = BertForSequenceClassification.from_pretrained(source).eval()(**inputs).logits[0]
        ours = load_model(str(source), "classify", wanted).network.eval()(**inputs)[0]
    by_name = {name.lower(): value.item() for name, value in zip(names, theirs, strict=True)}
    assert [value.item() for value in ours] == pytest.approx([by_name[name] for name in wanted], abs=1e-5)
    with pytest.raises(
        InputError, match=r"answers Neutral, contradiction, entailment, the data has a, b, c: .*--labels"
    ):
        load_model(str(source), "classify", ("a", "b", "c"))


def test_outputs_are_exchanged_with_their_biases(tiny_classifier: Path) -> None:
    network = load_model(str(tiny_classifier), "classify").network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    put_in_order(network, (1, 0))
    for name, value in network.state_dict().items():
        expected = before[name].flip(0) if name.startswith("head.output.") else before[name]
        assert torch.equal(value, expected), name


@pytest.mark.parametrize("kind", ["classify", "qa"])
def test_a_loaded_model_is_that_of_hugging_face(tmp_path: Path, kind: TaskKind) -> None:
    source = save_tiny(tmp_path / "model", kind, seed=3)
    model_class = BertForSequenceClassification if kind == "classify" else BertForQuestionAnswering
    theirs = model_class.from_pretrained(source).eval()
    model = load_model(str(source), kind, ("negative", "positive") if kind == "classify" else ())
    assert model.kind == kind
    assert {name: tuple(p.shape) for name, p in model.network.named_parameters()} == {
        name: tensor.shape for name, tensor in model.plan().tensors.items()
    }
    expected = site_tensors(theirs)
    assert all(torch.equal(parameter, expected[name]) for name, parameter in model.network.named_parameters())
    assert all(parameter.dtype == torch.float32 for parameter in model.network.parameters())
    ids = torch.tensor([[2, 60, 61, 62, 3], [2, 63, 3, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    with torch.no_grad():
        torch.testing.assert_close(model.network.eval()(**inputs), logits_of(theirs(**inputs)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["classify", "qa"])
def test_training_drops_where_hugging_face_does(tmp_path: Path, kind: TaskKind) -> None:
    """With one seed: the same numbers are drawn, in the same order, in the same places."""
    source = save_tiny(tmp_path / "model", kind, seed=3)
    model_class = BertForSequenceClassification if kind == "classify" else BertForQuestionAnswering
    rates = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3, "attn_implementation": "eager"}
    theirs = model_class.from_pretrained(source, **rates).train()
    ours = load_model(str(source), kind, dropout=0.3).network.train()
    plain = load_model(str(source), kind).network.train()
    ids = torch.randint(5, 80, (4, 9), generator=torch.Generator().manual_seed(0))
    found: list[Tensor] = []
    for model in (ours, theirs, plain):
        torch.manual_seed(7)
        output = model(ids, torch.ones_like(ids))
        found.append(output if isinstance(output, Tensor) else logits_of(output))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[0], found[2], atol=1e-2)


def test_a_new_head_is_drawn_by_the_seed(tiny_classifier: Path, tiny_qa: Path) -> None:
    heads: list[Tensor] = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        heads.append(load_model(str(tiny_qa), "classify", CLASSES).network.get_parameter("head.output.weight"))
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    state = torch.get_rng_state()
    load_model(str(tiny_classifier), "classify")  # with a head of its own
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("task", [*GLUE, "squad", "classify"])
def test_every_task_has_recipes(task: str) -> None:
    assert load_recipe(task).qat.changed(seed=3).seed == load_recipe(task).fp32.changed(seed=3).seed == 3
