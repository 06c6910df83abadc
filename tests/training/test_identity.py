"""A run goes on, and scores are taken over, only where everything that decides them is the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import BertForSequenceClassification

from q8core.errors import InputError
from q8core.tasks.task import ClassifyTask
from q8core.training.finetune import RECORD_FILE, finetune
from q8core.training.qat import baseline_scores, quantize_trained, train_quantized
from tests.conftest import save_tiny
from tests.training.test_loop import CONFIG, make_task

Change = Callable[[ClassifyTask], ClassifyTask]


def other_dev(task: ClassifyTask) -> ClassifyTask:
    flipped = tuple(replace(example, label=1 - int(example.label)) for example in task.data.dev)
    return replace(task, data=replace(task.data, dev=flipped))


def other_train(task: ClassifyTask) -> ClassifyTask:
    return task.with_train(task.data.train[::-1])


def shorter(task: ClassifyTask) -> ClassifyTask:
    return replace(task, max_length=8)


@pytest.fixture
def fine_tuned(tiny_classifier: Path, tmp_path: Path) -> Path:
    """A fine-tuned model whose record claims a score that nothing else gives."""
    output = tmp_path / "fp32"
    finetune(str(tiny_classifier), make_task(tiny_classifier), CONFIG, output, "made up")
    record = json.loads((output / RECORD_FILE).read_text())
    (output / RECORD_FILE).write_text(json.dumps({**record, "scores": {"accuracy": 0.123}}))
    return output


@pytest.mark.parametrize(
    ("change", "known"), [(lambda task: task, True), (other_train, True), (other_dev, False), (shorter, False)]
)
def test_a_recorded_score_counts_for_its_own_dev_examples(fine_tuned: Path, change: Change, known: bool) -> None:
    task = change(make_task(fine_tuned))
    assert (baseline_scores(str(fine_tuned), task, ("fp32",)) == {"fp32": {"accuracy": 0.123}}) is known


def test_a_recorded_score_counts_for_its_own_weights(fine_tuned: Path) -> None:
    BertForSequenceClassification.from_pretrained(save_tiny(fine_tuned / "new", "classify", seed=9)).save_pretrained(
        fine_tuned
    )
    scores = baseline_scores(str(fine_tuned), make_task(fine_tuned), ("fp32",))
    assert scores["fp32"]["accuracy"] != 0.123


@pytest.mark.parametrize(
    ("change", "named"), [(other_dev, "dev_sha256"), (other_train, "train_sha256"), (shorter, "max_length")]
)
@pytest.mark.parametrize("scheme", ["fp32", "q8bert"])
def test_an_unfinished_run_does_not_go_on_with_other_data(
    tiny_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, change: Change, named: str
) -> None:
    monkeypatch.setattr("q8core.training.loop.Trainer.discard_state", lambda _: None)

    def train(model: Path, task: ClassifyTask) -> None:
        if scheme == "fp32":
            finetune(str(model), task, CONFIG, tmp_path / "out", "made up")
        else:
            train_quantized(str(model), task, CONFIG, scheme, tmp_path / "out", "made up", keep_float=False)

    task = make_task(tiny_classifier)
    train(tiny_classifier, task)
    with pytest.raises(InputError, match=rf"other settings \({named}\)"):
        train(tiny_classifier, change(task))
    namesake = save_tiny(tmp_path / "other" / tiny_classifier.name, "classify", seed=5)
    with pytest.raises(InputError, match=r"other settings \(base_sha256\)"):
        train(namesake, task)
    train(tiny_classifier, task)


def test_a_model_for_other_labels_is_not_quantized(tiny_classifier: Path, tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", "classify", labels=("ham", "spam"))
    with pytest.raises(InputError, match=r"answers ham, spam, the data has negative, positive: .* --labels"):
        quantize_trained(str(source), make_task(tiny_classifier), "dynamic", tmp_path / "out", "made up", True)
    assert not (tmp_path / "out").exists()


def test_an_int8_checkpoint_is_not_trained_over(tiny_classifier: Path, tmp_path: Path) -> None:
    task = make_task(tiny_classifier)
    quantize_trained(str(tiny_classifier), task, "dynamic", tmp_path, "made up", keep_float=True)
    with pytest.raises(InputError, match="holds an int8 checkpoint"):
        finetune(str(tiny_classifier), task, CONFIG, tmp_path, "made up")


def test_a_checkpoint_of_a_pretrained_model_has_the_head_that_it_was_given(
    tiny_classifier: Path, tmp_path: Path
) -> None:
    task = make_task(tiny_classifier)
    source = save_tiny(tmp_path / "source", "classify")
    BertForSequenceClassification.from_pretrained(source).bert.save_pretrained(source)
    train_quantized(str(source), task, CONFIG, "q8bert", tmp_path / "int8", "made up", keep_float=True)
    config = json.loads((tmp_path / "int8" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert baseline_scores(str(tmp_path / "int8"), task, ("fp32",))
