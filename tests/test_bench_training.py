"""The benchmark of training steps: its contenders take the step they claim, its refusals, a short real run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification

from q8core.bench import models, training
from q8core.bench.contender import STOCK
from q8core.bench.folder import random_folder
from q8core.bench.timing import Timing, take_turns
from q8core.bench.training import with_stock
from q8core.bench.training_steps import AUTOCAST, FLOAT, QAT, STEPS, labelled, load_step
from q8core.bench.workloads import Shape, random_batch
from q8core.errors import InputError
from q8core.quant.qat.layers import QATLinear
from q8core.training.config import TrainConfig, best_precision
from tests.test_bench import TINY, run


@pytest.fixture
def tiny_minilm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models._SIZES, "minilm-l6", TINY)
    # the setting is the process's, for good: not for the tests after this one
    monkeypatch.setattr(training, "keep_freed_memory", lambda: True)


@pytest.mark.usefixtures("tiny_minilm")
def test_all_contenders_train_the_same_model_on_the_same_batch() -> None:
    """First losses agree up to the rounding of bf16 and of int8; the loss of a batch seen again and again falls."""
    batch = random_batch((3, 9, 5, 7), 100)
    with random_folder("minilm-l6", "classify") as folder:
        steps = {name: load_step(name, folder) for name in STEPS}
        model = BertForSequenceClassification.from_pretrained(folder).eval()
    expected = float(model(**labelled(batch)).loss.detach())
    for name, step in steps.items():
        take: Any = step.bind(batch)
        losses = [take() for _ in range(20)]
        assert losses[0] == pytest.approx(expected, abs=1e-5 if name == STOCK else 0.05), name
        assert losses[-1] < losses[0], name


@pytest.mark.usefixtures("tiny_minilm")
def test_contenders_differ_in_what_they_claim_to() -> None:
    with random_folder("minilm-l6", "classify") as folder:
        steps: dict[str, Any] = {name: load_step(name, folder) for name in STEPS}
    assert all(step._model.training for step in steps.values())
    dropouts = {m.p for step in steps.values() for m in step._model.modules() if isinstance(m, torch.nn.Dropout)}
    assert dropouts == {0.0}
    quantized = {name: any(isinstance(m, QATLinear) for m in step._model.modules()) for name, step in steps.items()}
    assert quantized == {STOCK: False, AUTOCAST: False, FLOAT: False, QAT: True}
    assert (steps[STOCK]._autocast, steps[AUTOCAST]._autocast) == (False, True)
    assert steps[QAT]._config == steps[FLOAT]._config == TrainConfig(precision=best_precision())


@pytest.mark.usefixtures("tiny_minilm")
def test_a_stock_step_is_that_of_a_plain_training_loop() -> None:
    batch = random_batch((4, 4), 100)
    with random_folder("minilm-l6", "classify") as folder:
        step: Any = load_step(STOCK, folder)
        model = BertForSequenceClassification.from_pretrained(
            folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=TrainConfig.learning_rate)
    take = step.bind(batch)
    for _ in range(2):
        take()
        model(**labelled(batch)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), TrainConfig.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
    for ours, theirs in zip(step._model.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.grad is None


def test_ratios_are_taken_round_by_round_against_both_stock_steps() -> None:
    times = {STOCK: (4.0, 10.0), AUTOCAST: (2.0, 8.0), QAT: (2.0, 4.0)}
    found = {t.engine: t for t in with_stock([Timing("m", "w", name, 2, 1, ms) for name, ms in times.items()])}
    against_stock, against_autocast = found[QAT].over(STOCK), found[QAT].over(AUTOCAST)
    assert against_stock is not None
    assert against_autocast is not None
    assert against_stock.median == pytest.approx(0.45)
    assert against_autocast.median == pytest.approx(0.75)
    assert found[STOCK].over(STOCK) == (1, 1, 1)


@pytest.mark.usefixtures("tiny_minilm")
def test_a_run_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    shapes = ("--shape", "2x8", "--shape", "1x5")
    code, output, error = run("--training", *shapes, "--repeats", "2", "--threads", "1", "--json", str(file))
    assert code == 0, error
    assert (
        f"minilm-l6, 1 thread: training steps, 2 rounds, contenders taking turns, ours in {best_precision()}" in output
    )
    assert all(name in output for name in STEPS)
    report = json.loads(file.read_text())
    assert report["complete"] is True
    assert (report["task"], report["dropout"], report["precision"]) == ("classify", 0.0, best_precision())
    assert [(t["model"], t["workload"], t["engine"]) for t in report["timings"]] == [
        ("minilm-l6", shape, name) for shape in ("2x8", "1x5") for name in STEPS
    ]
    for timing in report["timings"]:
        assert len(timing["milliseconds"]) == 2
        for name in (STOCK, AUTOCAST):
            low, high = timing["ratios"][name]["times_its_time_quartiles"]
            assert 0 < low <= timing["ratios"][name]["times_its_time"] <= high


@pytest.mark.usefixtures("tiny_minilm")
def test_default_batches_and_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop_at_the_second(*args: Any) -> Any:
        if args[3] == Shape(16, 192).workload():
            raise KeyboardInterrupt
        assert args[3] == Shape(32, 32).workload()
        return take_turns(*args)

    monkeypatch.setattr(training, "take_turns", stop_at_the_second)
    file = tmp_path / "bench.json"
    code, output, _ = run("--training", "--repeats", "1", "--json", str(file))
    assert code == 130
    assert "stopped early" in output
    report = json.loads(file.read_text())
    assert report["complete"] is False
    assert {t["workload"] for t in report["timings"]} == {"32x32"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "x"], "--checkpoint does not go with --training"),
        (["--workload", "sst2"], "--workload does not go with --training"),
        (["--tokenizer", "x"], "--tokenizer does not go with --training"),
        (["--engine", "fp32"], "--engine does not go with --training"),
        (["--peers"], "--peers does not go with --training"),
        (["--task", "classify"], "--task does not go with --training"),
        (["--memory"], "--memory does not go with --training"),
        (["--plot", "x.png"], "--plot does not go with --training"),
        (["--model", "bert-huge"], "model is 'bert-huge'"),
        (["--shape", "1x513"], "the longest sequence has 513 tokens; minilm-l6 takes at most 512"),
        (["--shape", "1by5"], "expected SEQUENCESxLENGTH"),
        (["--threads", "0"], "--threads is '0'"),
        (["--json", "/nonexistent/out.json"], "the folder /nonexistent does not exist"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(arguments: list[str], message: str) -> None:
    _, _, error = run("--training", *arguments)
    assert isinstance(error, InputError)
    assert message in str(error)
