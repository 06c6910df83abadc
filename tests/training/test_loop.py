from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from q8core.errors import CheckpointError, InputError, TrainingError
from q8core.quant.qat.prepare import calibrate, prepare
from q8core.tasks.batching import sorted_batches
from q8core.tasks.examples import ClassifyData, TextExample
from q8core.tasks.task import ClassifyTask
from q8core.tokenizer import load_tokenizer
from q8core.training.batches import collate, epoch_batches
from q8core.training.config import Precision, TrainConfig
from q8core.training.loop import ALL_ALIKE, Interrupted, ParameterRules, Trainer, make_optimizer, schedule
from q8core.training.model import load_model
from q8core.training.qat import STEP_RATE, parameter_rules
from q8core.training.recipe import load_recipe
from q8core.training.score import model_logits
from q8core.training.state import STATE_FILE
from tests.models import small

CONFIG = TrainConfig(epochs=2, batch_size=4, learning_rate=1e-3, evals=2, dropout=0.1)
GOOD, BAD = ("good", "great", "funny"), ("bad", "awful", "boring")


def make_task(folder: Path, count: int = 48) -> ClassifyTask:
    examples = tuple(
        TextExample(f"a very {(GOOD if i % 2 else BAD)[i % 3]} film" + " of the year" * (i % 4), None, i % 2)
        for i in range(count)
    )
    data = ClassifyData(("negative", "positive"), examples, examples[:12])
    return ClassifyTask(data, load_tokenizer(folder), max_length=32)


def make_trainer(folder: Path, output: Path, scheme: str | None, config: TrainConfig = CONFIG) -> Trainer:
    torch.manual_seed(config.seed)
    task = make_task(folder)
    model = load_model(str(folder), "classify", task.labels, config.dropout)
    rules = ALL_ALIKE
    if scheme:
        plan = model.plan(small(scheme))
        prepare(model.network, plan)
        if plan.starts_calibrated:
            calibrate(model.network, [collate(task.train_features()[:8], "classify", with_targets=False)])
        rules = parameter_rules(model.network)

    def score(module: nn.Module, limit: int | None) -> dict[str, float]:
        return task.score(model_logits(module, task.dev_features(limit), "classify"))

    return Trainer(model.network, task, score, config, output, rules=rules)


@pytest.mark.parametrize("scheme", [None, "q8bert", "q8bert-attention", "qbert-4", "kdlsq-4", "mkq"])
def test_training_learns(tiny_classifier: Path, tmp_path: Path, scheme: str | None) -> None:
    trainer = make_trainer(tiny_classifier, tmp_path, scheme, replace(CONFIG, epochs=12))
    before = trainer.score(trainer.model.eval(), None)["accuracy"] if scheme is None else 0.5
    trainer.run(trainer.task.train_features())
    assert trainer.score(trainer.model, None)["accuracy"] == 1.0 > before


@pytest.mark.parametrize(
    ("scheme", "average"),
    [(None, 0.3), ("q8bert", 0.3), ("q8bert-attention", 0.0), ("kdlsq-2", 0.3), ("mkq", 0.0), ("ternary", 0.0)],
)
def test_a_stopped_run_ends_with_the_same_weights(
    tiny_classifier: Path, tmp_path: Path, scheme: str | None, average: float
) -> None:
    config = replace(CONFIG, average=average)
    whole = make_trainer(tiny_classifier, tmp_path / "whole", scheme, config)
    features = whole.task.train_features()
    whole.run(features)

    stopped = make_trainer(tiny_classifier, tmp_path / "stopped", scheme, config)
    steps = 0

    def stop_after_seven(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    handle = stopped.model.register_forward_hook(stop_after_seven)
    with pytest.raises(Interrupted):
        stopped.run(features)
    handle.remove()
    resumed = make_trainer(tiny_classifier, tmp_path / "stopped", scheme, config)
    assert resumed.run(features).step == 24
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize(("scheme", "precision"), [(None, "fp32"), ("q8bert", "fp32"), ("q8bert", "bf16")])
def test_the_same_seed_gives_the_same_weights(
    tiny_classifier: Path, tmp_path: Path, scheme: str | None, precision: Precision
) -> None:
    config = replace(CONFIG, epochs=5, max_steps=50, precision=precision)
    states: list[dict[str, torch.Tensor]] = []
    for name in ("first", "again"):
        trainer = make_trainer(tiny_classifier, tmp_path / name, scheme, config)
        assert trainer.run(trainer.task.train_features()).step == 50
        states.append(trainer.model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_training_that_diverges_is_an_error(tiny_classifier: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_classifier, tmp_path, None)
    with torch.no_grad():
        trainer.model.get_parameter("head.output.bias")[0] = torch.nan
    words = trainer.model.get_parameter("word_embeddings.weight")
    before = words.detach().clone()
    with pytest.raises(TrainingError, match="the loss is nan: training diverged"):
        trainer.run(trainer.task.train_features())
    assert torch.equal(words, before)


def test_the_best_weights_are_kept(tiny_classifier: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_classifier, tmp_path, None, replace(CONFIG, evals=4))
    scores = iter([0.1, 0.9, 0.3, 0.2])
    seen: list[dict[str, torch.Tensor]] = []

    def score(module: nn.Module, limit: int | None) -> dict[str, float]:
        seen.append({name: value.clone() for name, value in module.state_dict().items()})
        return {"accuracy": next(scores)}

    trainer.score = score
    progress = trainer.run(trainer.task.train_features())
    assert (progress.best_step, progress.best_score) == (12, 0.9)
    assert all(torch.equal(value, seen[1][name]) for name, value in trainer.model.state_dict().items())
    log = [json.loads(line) for line in (tmp_path / "train_log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "scores" in entry] == [6, 12, 18, 24]


def test_other_settings_and_damaged_states_are_refused(tiny_classifier: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_classifier, tmp_path, None)
    features = trainer.task.train_features()
    trainer.run(features)
    other = make_trainer(tiny_classifier, tmp_path, None, replace(CONFIG, learning_rate=2e-3))
    with pytest.raises(InputError, match="learning_rate"):
        other.run(features)
    state = tmp_path / STATE_FILE
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        make_trainer(tiny_classifier, tmp_path, None).run(features)


def test_every_epoch_sees_every_example_once_in_an_order_of_its_own() -> None:
    lengths = [(7 * i) % 40 + 1 for i in range(1000)]
    first, again, second = (epoch_batches(lengths, 16, 1, epoch) for epoch in (0, 0, 1))
    assert first == again != second
    assert sorted(i for batch in first for i in batch) == list(range(1000))
    padding = sum(max(lengths[i] for i in b) * len(b) for b in first) / sum(lengths)
    assert padding < 1.1


def test_sorted_batches_keep_to_the_budget() -> None:
    lengths = [(7 * i) % 40 + 1 for i in range(100)] + [500]
    batches = sorted_batches(lengths, 120)
    assert sorted(i for batch in batches for i in batch) == list(range(101))
    assert all(max(lengths[i] for i in b) * len(b) <= 120 or len(b) == 1 for b in batches)


def test_the_schedule_rises_and_falls() -> None:
    factors = [schedule(step, 100, 0.1) for step in range(100)]
    assert max(factors) == factors[10] == 1.0
    assert 0 < factors[0] < 0.1
    assert factors[-1] == pytest.approx(1 / 90)
    assert all(a < b for a, b in pairwise(factors[:11]))


def test_collate_pads_with_a_mask(tiny_classifier: Path) -> None:
    task = make_task(tiny_classifier)
    features = task.train_features()[:4]
    batch = collate(features, "classify")
    assert batch["attention_mask"].sum(1).tolist() == [len(f) for f in features]
    assert batch["labels"].tolist() == [0, 1, 0, 1]
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 0).all()


def test_impossible_settings_are_named() -> None:
    with pytest.raises(InputError, match="learning_rate is -1"):
        load_recipe("sst2").fp32.changed(learning_rate=-1.0)
    with pytest.raises(InputError, match="batch_size is 0"):
        load_recipe("sst2").qat.changed(batch_size=0)


def test_learned_steps_have_their_own_rate_and_few_bits_no_decay(tiny_classifier: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_classifier, tmp_path, "kdlsq-2")
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    optimizer = make_optimizer(trainer.model, trainer.config, trainer.rules)
    found = {
        names[id(parameter)]: (group["peak"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert found.keys() == set(names.values())
    assert found["layers.0.query.input_log_step"] == found["word_embeddings.weight_steps.log_step"] == (STEP_RATE, 0)
    assert found["layers.1.ffn_in.weight"] == found["layers.1.ffn_in.bias"] == (CONFIG.learning_rate, 0)
    assert found["head.dense.weight"] == (CONFIG.learning_rate, CONFIG.weight_decay)
    trainer.run(trainer.task.train_features())
    for group in make_optimizer(trainer.model, trainer.config, ParameterRules()).param_groups:
        assert group["peak"] == CONFIG.learning_rate


def test_learned_steps_move_at_their_rate(tiny_classifier: Path, tmp_path: Path) -> None:
    """Adam's first update is the learning rate itself, whatever the gradient."""
    trainer = make_trainer(tiny_classifier, tmp_path, "kdlsq-4", replace(CONFIG, max_steps=1, warmup=0.0, evals=1))
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.run(trainer.task.train_features())
    after = dict(trainer.model.named_parameters())
    for name, rate in (
        ("layers.0.ffn_in.weight_steps.log_step", STEP_RATE),
        ("head.output.bias", CONFIG.learning_rate),
    ):
        assert float((after[name].detach() - before[name]).abs().max()) == pytest.approx(rate, rel=1e-3)
