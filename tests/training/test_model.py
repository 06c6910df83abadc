from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertForSequenceClassification

from q8core.errors import InputError
from q8core.tasks.glue import GLUE
from q8core.training.model import load_bert
from q8core.training.recipe import load_recipe
from tests.conftest import save_tiny

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
    model = load_bert(str(tmp_path), "classify", labels)
    assert model.config.num_labels == len(labels)
    assert model.classifier.out_features == len(labels)
    assert (model.config.problem_type == "regression") == (labels == NUMBER)


def test_a_head_for_other_labels_is_named(tiny_classifier: Path) -> None:
    for labels in (NUMBER, ("a", "b", "c")):
        with pytest.raises(InputError, match=f"a head with 2 outputs, this task needs {len(labels)}"):
            load_bert(str(tiny_classifier), "classify", labels)


def test_a_head_is_put_into_the_order_of_the_tasks_labels(tmp_path: Path) -> None:
    names = ("Neutral", "contradiction", "entailment")
    source = save_tiny(tmp_path / "other", "classify", labels=names)
    wanted = ("entailment", "neutral", "contradiction")
    inputs = {"input_ids": torch.tensor([[2, 60, 61, 62, 3]])}
    with torch.no_grad():
        theirs = BertForSequenceClassification.from_pretrained(source).eval()(**inputs).logits[0]
        ours = load_bert(str(source), "classify", wanted).eval()(**inputs).logits[0]
    by_name = {name.lower(): value.item() for name, value in zip(names, theirs, strict=True)}
    assert [value.item() for value in ours] == pytest.approx([by_name[name] for name in wanted], abs=1e-5)
    with pytest.raises(
        InputError, match=r"answers Neutral, contradiction, entailment, the data has a, b, c: .*--labels"
    ):
        load_bert(str(source), "classify", ("a", "b", "c"))


@pytest.mark.parametrize("task", [*GLUE, "squad", "classify"])
def test_every_task_has_recipes(task: str) -> None:
    assert load_recipe(task).config(True, seed=3).seed == load_recipe(task).config(False, seed=3).seed == 3
