from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.special import log_softmax, softmax
from torch import Tensor, nn
from transformers import BertForSequenceClassification

from q8core.errors import InputError, Q8Error
from q8core.model.head import TaskKind
from q8core.model.network import Network
from q8core.quant import preset
from q8core.quant.qat.prepare import prepare
from q8core.tasks.examples import QAExample
from q8core.tasks.task import ClassifyTask, QATask, Task
from q8core.tokenizer import load_tokenizer
from q8core.training.config import TrainConfig
from q8core.training.distillation import (
    Distillation,
    logits_loss,
    soft_cross_entropy,
    training_loss,
    visible_mse,
    why_not_itself,
)
from q8core.training.finetune import finetune
from q8core.training.loop import Interrupted, Trainer
from q8core.training.losses import task_loss
from q8core.training.model import load_model
from q8core.training.processes import Processes
from q8core.training.qat import train_quantized
from q8core.training.recipe import load_recipe
from q8core.training.score import model_logits
from tests.conftest import save_tiny, tiny_config
from tests.training.test_loop import CONFIG, make_task

LABELS = ("negative", "positive")
GENERATOR = torch.Generator().manual_seed(0)


def only(name: str, **more: float) -> TrainConfig:
    """A config in which one loss counts."""
    weights = dict.fromkeys(("distill_labels", "distill_logits", "distill_hidden", "distill_attention"), 0.0)
    return TrainConfig(**{**weights, name: 1.0, **more})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("teacher") / "teacher", "classify", seed=1)


def pair_of(source: Path, teacher: Path) -> tuple[Network, Network]:
    student, master = (load_model(str(folder), "classify", LABELS).network for folder in (source, teacher))
    return student, master


def batch_of(padding: int = 0, kind: str = "classify") -> dict[str, Tensor]:
    """Three texts of 9, 5 and 12 tokens, padded to 12 + padding."""
    lengths, width = (9, 5, 12), 12 + padding
    mask = torch.zeros(3, width, dtype=torch.long)
    ids = torch.zeros_like(mask)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
        ids[row, :length] = torch.arange(5, 5 + length) + 7 * row
    batch = {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": mask}
    if kind == "classify":
        return {**batch, "labels": torch.tensor([0, 1, 1])}
    return {**batch, "start_positions": torch.tensor([1, 2, 3]), "end_positions": torch.tensor([2, 4, 8])}


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_cross_entropy_is_that_of_float64(temperature: float) -> None:
    student, teacher = (4 * torch.randn(6, 5, generator=GENERATOR) for _ in range(2))
    ours, theirs = (x.double().numpy() / temperature for x in (student, teacher))
    p = softmax(theirs, axis=1)
    entropy = -(p * log_softmax(theirs, axis=1)).sum(1)
    expected = temperature**2 * float((-(p * log_softmax(ours, axis=1)).sum(1) - entropy).mean())
    assert float(soft_cross_entropy(student, teacher, temperature)) == pytest.approx(expected, rel=1e-5)


def test_visible_mse_counts_only_what_is_visible() -> None:
    student, teacher = (torch.randn(2, 4, 3, 3, generator=GENERATOR) for _ in range(2))
    visible = torch.rand(2, 1, 3, 3, generator=GENERATOR) < 0.5
    visible[:, 0, 0, 0] = True
    everywhere = visible.expand_as(student).numpy()
    squares = (student.double() - teacher.double()).numpy() ** 2
    expected = np.mean([row[seen].mean() for row, seen in zip(squares, everywhere, strict=True)])
    assert float(visible_mse(student, teacher, visible)) == pytest.approx(expected, rel=1e-6)


def test_a_numbers_loss_is_the_squared_difference() -> None:
    student, teacher = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [5.0]])
    assert float(logits_loss(student, teacher, torch.ones(2, 3), 2.0)) == pytest.approx(5.0)


def test_places_are_classes_of_the_visible_tokens() -> None:
    """The mean of both ends' divergences in float64, each over the tokens that a row has."""
    student, teacher = (3 * torch.randn(2, 5, 2, generator=GENERATOR) for _ in range(2))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    ends = []
    for end in range(2):
        for row, length in enumerate((5, 3)):
            ours, theirs = (x[row, :length, end].double().numpy() / 2 for x in (student, teacher))
            p = softmax(theirs)
            ends.append(4 * float((p * (log_softmax(theirs) - log_softmax(ours))).sum()))
    assert logits_loss(student, teacher, mask, 2.0).item() == pytest.approx(np.mean(ends), rel=1e-5)


def reference(source: Path, teacher: Path, batch: dict[str, Tensor], name: str) -> float:
    """Hugging Face's own hidden states, and attention scores as log probabilities up to a row's constant."""
    inputs = {key: value for key, value in batch.items() if key in ("input_ids", "token_type_ids", "attention_mask")}
    models = [BertForSequenceClassification.from_pretrained(folder).eval() for folder in (source, teacher)]
    with torch.no_grad():
        ours, theirs = (model(**inputs, output_hidden_states=True) for model in models)
    seen = batch["attention_mask"].numpy() != 0
    total = 0.0
    if name == "distill_hidden":
        for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True):
            total += rows_mean((a.double() - b.double()).numpy(), seen)
        return total
    for layer in range(models[0].config.num_hidden_layers):
        scores: list[np.ndarray] = []
        for model, output in zip(models, (ours, theirs), strict=True):
            attention = model.bert.encoder.layer[layer].attention.self
            x = output.hidden_states[layer].double().numpy()
            q, k = (
                (x @ linear.weight.detach().double().numpy().T + linear.bias.detach().double().numpy()).reshape(
                    *x.shape[:2], attention.num_attention_heads, -1
                )
                for linear in (attention.query, attention.key)
            )
            scores.append(np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(q.shape[-1]))
        pairs = np.broadcast_to((seen[:, :, None] & seen[:, None, :])[:, None], scores[0].shape)
        total += rows_mean(scores[0] - scores[1], pairs)
    return total


def rows_mean(difference: np.ndarray, seen: np.ndarray) -> float:
    return float(np.mean([(row[where] ** 2).mean() for row, where in zip(difference, seen, strict=True)]))


@pytest.mark.parametrize("name", ["distill_hidden", "distill_attention"])
def test_losses_of_inner_states_are_those_of_float64(tiny_classifier: Path, teacher: Path, name: str) -> None:
    student, master = pair_of(tiny_classifier, teacher)
    batch = batch_of()
    found = Distillation(student, master, only(name))(student.train(), batch)
    assert found.item() == pytest.approx(reference(tiny_classifier, teacher, batch, name), rel=1e-4)


def test_scores_of_queries_and_keys_are_those_that_attention_uses(tiny_classifier: Path) -> None:
    """Recomputed scores, put through a softmax, are the probabilities that the model reports."""
    from q8core.training.distillation import attention_scores

    theirs = BertForSequenceClassification.from_pretrained(tiny_classifier, attn_implementation="eager").eval()
    batch = batch_of()
    output = theirs(**batch, output_attentions=True, output_hidden_states=True)
    layer = load_model(str(tiny_classifier), "classify", LABELS).network.eval().layers[1]
    x = output.hidden_states[1]
    scores = attention_scores(layer.query(x), layer.key(x), layer.heads)
    hidden = (batch["attention_mask"] == 0)[:, None, None, :]
    assert torch.allclose(scores.masked_fill(hidden, -torch.inf).softmax(-1), output.attentions[1], atol=1e-6)


@pytest.mark.parametrize("kind", ["classify", "qa"])
@pytest.mark.parametrize("name", ["distill_logits", "distill_hidden", "distill_attention"])
def test_padding_has_no_influence(tmp_path: Path, name: str, kind: TaskKind) -> None:
    folders = [save_tiny(tmp_path / str(seed), kind, seed) for seed in (2, 3)]
    student, master = (load_model(str(f), kind, LABELS if kind == "classify" else ()).network for f in folders)
    loss = Distillation(student, master, only(name, distill_temperature=2.0))
    grads: list[list[Tensor]] = []
    values: list[float] = []
    for padding in (0, 7):
        student.zero_grad()
        value = loss(student.train(), batch_of(padding, kind))
        value.backward()
        values.append(value.item())
        grads.append([p.grad.clone() for p in student.parameters() if p.grad is not None])
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert values[0] > 0.01
    largest = max(float(g.abs().max()) for g in grads[0])
    assert all(torch.allclose(a, b, atol=1e-5 * largest) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("scheme", ["fp32", "q8bert", "q8bert-attention"])
def test_the_teacher_never_changes(tiny_classifier: Path, teacher: Path, tmp_path: Path, scheme: str) -> None:
    task = make_task(tiny_classifier)
    model = load_model(str(tiny_classifier), "classify", LABELS)
    if scheme != "fp32":
        prepare(model.network, model.plan(preset(scheme)))
    loss, _ = training_loss(str(teacher), model, task, CONFIG)
    assert isinstance(loss, Distillation)
    loss.teacher.train()  # nobody should; and if, the next run puts it right
    loss = Distillation(loss.student, loss.teacher, CONFIG)
    before = {name: value.clone() for name, value in loss.teacher.state_dict().items()}
    trainer = Trainer(model.network, task, lambda *_: {"accuracy": 0.0}, CONFIG, tmp_path, {}, loss)
    trainer.run(task.train_features())
    assert all(torch.equal(value, before[name]) for name, value in loss.teacher.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in loss.teacher.parameters())
    assert not loss.teacher.training


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(tiny_classifier: Path, precision: str) -> None:
    student, master = pair_of(tiny_classifier, tiny_classifier)
    loss = Distillation(student, master, TrainConfig())
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        assert loss(student.train(), batch_of()).item() == 0.0


def test_labels_count_as_much_as_asked(tiny_classifier: Path) -> None:
    student, master = pair_of(tiny_classifier, tiny_classifier)
    batch = batch_of()
    expected = 0.25 * task_loss(student, batch).item()
    loss = Distillation(student, master, TrainConfig(distill_labels=0.25))
    assert loss(student, batch).item() == pytest.approx(expected)


def test_a_student_becomes_its_teacher(tiny_classifier: Path, teacher: Path, tmp_path: Path) -> None:
    """Trained on wrong labels, with a teacher whose answers are right: it must believe the teacher."""
    task = make_task(tiny_classifier)
    right = finetune(str(teacher), task, replace(CONFIG, epochs=12), tmp_path / "teacher", "made up")
    assert right["fp32"] == {"accuracy": 1.0}
    wrong = tuple(replace(example, label=1 - example.label) for example in task.data.train)
    liar = ClassifyTask(replace(task.data, train=wrong), task.tokenizer, task.max_length)
    config = replace(CONFIG, epochs=12, dropout=0.0)
    scores = train_quantized(
        str(tiny_classifier), liar, config, "q8bert", tmp_path / "int8", "", False, teacher=str(tmp_path / "teacher")
    )
    assert scores["int8"] == {"accuracy": 1.0}
    card = json.loads((tmp_path / "int8" / "q8bert.json").read_text())["training"]
    assert card["teacher"]["name"] == "teacher"
    assert len(card["teacher"]["sha256"]) == 64
    assert card["config"]["distill_logits"] == 1.0


def test_a_stopped_run_ends_with_the_same_weights(tiny_classifier: Path, teacher: Path, tmp_path: Path) -> None:
    def trainer_in(folder: Path, source: Path = teacher) -> Trainer:
        torch.manual_seed(CONFIG.seed)
        task = make_task(tiny_classifier)
        model = load_model(str(tiny_classifier), "classify", LABELS, CONFIG.dropout)
        prepare(model.network, model.plan(preset("q8bert")))
        loss, identity = training_loss(str(source), model, task, CONFIG)

        def score(module: nn.Module, limit: int | None) -> dict[str, float]:
            return task.score(model_logits(module, task.dev_features(limit), "classify"))

        return Trainer(model.network, task, score, CONFIG, folder, identity, loss)

    whole = trainer_in(tmp_path / "whole")
    features = whole.task.train_features()
    whole.run(features)
    stopped, steps = trainer_in(tmp_path / "stopped"), 0

    def stop_after_seven(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    handle = stopped.model.register_forward_hook(stop_after_seven)
    with pytest.raises(Interrupted):
        stopped.run(features)
    handle.remove()
    # a teacher with other weights, under the same name, is another teacher
    other = tmp_path / "other" / teacher.name
    shutil.copytree(teacher, other)
    weights = load_file(other / "model.safetensors")
    save_file(
        {**weights, "classifier.bias": weights["classifier.bias"] + 1}, other / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(InputError, match=r"other settings \(teacher\)"):
        trainer_in(tmp_path / "stopped", other).run(features)
    without = trainer_in(tmp_path / "stopped")
    without.identity = {}
    with pytest.raises(InputError, match=r"other settings \(teacher\)"):
        without.run(features)
    resumed = trainer_in(tmp_path / "stopped")
    assert resumed.run(features).step == 24
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def qa_task(folder: Path) -> QATask:
    example = QAExample("1", "who built it", "one city built the tower", ("one city",), 0)
    return QATask([example], [example], load_tokenizer(folder), max_length=64)


def test_wrong_teachers_are_refused_before_training(
    tiny_classifier: Path, tiny_qa: Path, teacher: Path, tmp_path: Path
) -> None:
    def refused(match: str, source: Path | str, task: Task | None = None, **config: float) -> None:
        output = tmp_path / "output"
        work = task or make_task(tiny_classifier)
        start = str(tiny_qa if task else tiny_classifier)
        with pytest.raises(Q8Error, match=match):
            finetune(start, work, replace(CONFIG, **config), output, "", teacher=str(source))
        assert not output.exists()

    refused("neither a folder nor reachable", tmp_path / "nothing")
    refused("was not fine-tuned for this task", tiny_qa)
    refused("was not fine-tuned for this task", teacher, qa_task(tiny_qa))
    refused(
        "the model answers ham, spam, the data has negative, positive",
        save_tiny(tmp_path / "other", "classify", labels=("ham", "spam")),
    )
    refused("a head with 3 outputs", save_tiny(tmp_path / "three", "classify", labels=("a", "b", "c")))
    refused("all are 0", teacher, distill_logits=0, distill_hidden=0, distill_attention=0)
    other = tmp_path / "words"
    shutil.copytree(teacher, other)
    vocabulary = json.loads((other / "tokenizer.json").read_text())
    vocabulary["model"]["vocab"]["brand-new"] = vocabulary["model"]["vocab"].pop("movie")
    (other / "tokenizer.json").write_text(json.dumps(vocabulary))
    refused("another vocabulary", other)


def test_a_teacher_of_another_shape_teaches_only_answers(tiny_classifier: Path, tmp_path: Path) -> None:
    big = save_tiny(tmp_path / "big", "classify", seed=4)
    size = load_tokenizer(big).get_vocab_size()
    names = dict(enumerate(LABELS))
    BertForSequenceClassification(tiny_config(size, num_hidden_layers=3, id2label=names)).save_pretrained(big)
    student, master = pair_of(tiny_classifier, big)
    with pytest.raises(InputError, match="teacher's number of layers is 3, the student's 2: distill_hidden"):
        Distillation(student, master, TrainConfig())
    with pytest.raises(InputError, match="distill_attention compares"):
        Distillation(student, master, TrainConfig(distill_hidden=0))
    loss = Distillation(student, master, TrainConfig(distill_hidden=0, distill_attention=0))
    assert loss(student, batch_of()).item() > 0


def test_generic_labels_teach_what_has_numbers(tiny_classifier: Path, tmp_path: Path) -> None:
    """Classes of a public data set have numbers, names of a user's own data have none."""
    generic = save_tiny(tmp_path / "generic", "classify", seed=5, labels=("LABEL_0", "LABEL_1"))
    student = load_model(str(tiny_classifier), "classify", LABELS)
    task = make_task(tiny_classifier)
    with pytest.raises(InputError, match="which is which cannot be told"):
        training_loss(str(generic), student, task, CONFIG)
    numbered = replace(task, data=replace(task.data, numbers=(0, 1)))
    loss, identity = training_loss(str(generic), student, numbered, CONFIG)
    assert isinstance(loss, Distillation)
    assert identity["teacher"]["name"] == "generic"


def test_a_model_teaches_itself_only_what_it_was_trained_for(tiny_classifier: Path, tmp_path: Path) -> None:
    task = make_task(tiny_classifier)
    assert not why_not_itself(str(tiny_classifier), task)
    assert "was not fine-tuned for this task" in why_not_itself(str(save_tiny(tmp_path / "qa", "qa")), task)


@pytest.mark.parametrize("name", ["distill_logits", "distill_hidden", "distill_attention"])
def test_the_losses_of_shared_batches_add_up_to_that_of_the_whole(
    tiny_classifier: Path, teacher: Path, name: str
) -> None:
    """Rows of different lengths, dealt out to two processes that weigh their loss by their share of the rows."""
    student, master = pair_of(tiny_classifier, teacher)
    loss, batch = Distillation(student, master, only(name)), batch_of()
    whole = loss(student, batch).item()
    shares = [Processes(rank, 2).share(batch) for rank in range(2)]
    assert sum(loss(student, part).item() * share for part, share in shares) == pytest.approx(whole, rel=1e-5)


def test_impossible_weights_are_named() -> None:
    for name, value in (("distill_hidden", -1.0), ("distill_logits", float("nan")), ("distill_temperature", 0.0)):
        with pytest.raises(InputError, match=f"{name} is {value}"):
            load_recipe("sst2").qat.changed(**{name: value})
