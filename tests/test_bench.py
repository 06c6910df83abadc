"""The benchmark: its arithmetic, its refusals, and short real runs on tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from q8core.bench import models
from q8core.bench.contenders import CONTENDERS, build_contender
from q8core.bench.environment import environment
from q8core.bench.models import bench_config
from q8core.bench.resident import random_folder
from q8core.bench.timing import Shape, Timing, take_turns
from q8core.cli import app
from q8core.engines import build_engine
from q8core.engines.random_weights import RandomFloat, RandomInt8
from q8core.errors import InputError

TINY = {
    "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip


@pytest.fixture
def tiny_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models._SIZES, "bert-base", TINY)


def run(*arguments: str) -> tuple[int, str, BaseException | None]:
    result = CliRunner().invoke(app, ["bench", *arguments], env={"COLUMNS": "200"})
    return result.exit_code, result.output, result.exception


@pytest.mark.parametrize("task", ["classify", "qa"])
def test_random_tensors_are_a_complete_checkpoint_and_alike_each_time(task: str) -> None:
    config = bench_config("minilm-l6", vocab_size=90, num_hidden_layers=1)
    for made, backend in ((RandomInt8(config, task), "int8"), (RandomFloat(config, task), "fp32")):
        engine = build_engine(config, task, made, backend, "onednn")
        again = build_engine(config, task, dict(made), backend, "onednn")
        batch = Shape(2, 6).batch(90)
        logits = engine.infer(batch)
        assert torch.equal(logits, again.infer(batch))
        assert torch.isfinite(logits).all()
        assert float(logits.std()) > 1e-3


def test_the_named_shapes_are_those_of_the_models() -> None:
    def parameters(name: str) -> float:
        return sum(tensor.numel() for tensor in RandomFloat(bench_config(name)).values()) / 1e6

    assert parameters("minilm-l6") == pytest.approx(22.7, abs=0.1)
    assert bench_config("bert-large").hidden_size == 1024
    assert bench_config("bert-base").num_hidden_layers == 12


def test_ratios_are_taken_round_by_round() -> None:
    timing = Timing("m", "2x50", "int8", (1.0, 2.0, 4.0), (3.0, 10.0, 8.0))
    assert timing.median == 2.0
    assert timing.ratio == 3.0  # the median of 3, 5 and 2, not 8 / 2
    assert timing.ratio_spread == (2.5, 4.0)
    assert timing.tokens_per_second == pytest.approx(100 / 0.002)
    assert Timing("m", "1x1", "int8", (1.0,), None).ratio is None
    assert Timing("m", "1x1", "int8", (1.0,), None).spread == (1.0, 1.0)


def test_each_round_times_each_engine_once_starting_with_another() -> None:
    order: list[str] = []

    def contender(name: str):
        return lambda batch: order.append(name)

    rounds: list[int] = []
    found = take_turns("m", {n: contender(n) for n in "abc"}, Shape(1, 4), 10, 3, lambda: rounds.append(1))
    assert order == [*"aabbcc", *"abc", *"bca", *"cab"]
    assert len(rounds) == 3
    assert all(len(timing.milliseconds) == 3 for timing in found)


@pytest.mark.parametrize("text", ["1", "x8", "8x", "0x8", "2x-3", "axb", "1x2x3"])
def test_malformed_shapes_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected SEQUENCESxLENGTH"):
        Shape.parse(text)


@pytest.mark.usefixtures("tiny_shape")
def test_all_contenders_agree_on_what_they_compute() -> None:
    """Same shapes of output for the same batch: the comparison is of equals."""
    config = bench_config("bert-base")
    batch = Shape(2, 7).batch(100)
    for name in CONTENDERS:
        out = build_contender(name, config, "qa", 1)(batch)
        logits = out if isinstance(out, torch.Tensor) else torch.stack([out.start_logits, out.end_logits], -1)
        assert logits.numel() == 2 * 7 * 2


@pytest.mark.usefixtures("tiny_shape")
def test_a_run_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    code, output, _ = run("--shape", "1x8", "--shape", "2x16", "--repeats", "2", "--threads", "1", "--json", str(file))
    assert code == 0
    assert f"torch {torch.__version__}" in output
    assert all(name in output for name in CONTENDERS)
    report = json.loads(file.read_text())
    assert report["complete"] is True
    assert [(t["shape"], t["engine"]) for t in report["timings"]] == [
        (shape, name) for shape in ("1x8", "2x16") for name in CONTENDERS
    ]
    assert all(len(t["milliseconds"]) == 2 and t["ratio_to_transformers"] > 0 for t in report["timings"])
    stock = [t for t in report["timings"] if t["engine"] == "transformers"]
    assert all(t["ratio_to_transformers"] == 1 for t in stock)


@pytest.mark.usefixtures("tiny_shape")
def test_ctrl_c_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop_at_the_second(*args: object, **kwargs: object) -> object:
        if args[2] == Shape(2, 16):
            raise KeyboardInterrupt
        return take_turns(*args, **kwargs)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr("q8core.cli.bench_run.take_turns", stop_at_the_second)
    file = tmp_path / "bench.json"
    code, output, _ = run("--shape", "1x8", "--shape", "2x16", "--repeats", "1", "--json", str(file))
    assert code == 130
    assert "stopped early" in output
    report = json.loads(file.read_text())
    assert report["complete"] is False
    assert {t["shape"] for t in report["timings"]} == {"1x8"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "bert-huge"], "model is 'bert-huge'; allowed: bert-base, bert-large, minilm-l6"),
        (["--engine", "onnx"], "engine is 'onnx'; allowed: transformers, fp32"),
        (["--task", "ner"], "--task is 'ner'"),
        (["--shape", "1x513"], "--shape has 513 tokens; bert-base takes at most 512"),
        (["--checkpoint", "x"], "--checkpoint is for --memory"),
        (["--json", "/nonexistent/out.json"], "the folder /nonexistent does not exist"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(arguments: list[str], message: str) -> None:
    _, _, error = run(*arguments)
    assert isinstance(error, InputError)
    assert message in str(error)


@pytest.mark.usefixtures("tiny_shape")
def test_memory_of_each_engine_in_its_own_process(tmp_path: Path) -> None:
    """A real measurement; the tiny model only shows that figures arrive and are of bytes."""
    file = tmp_path / "memory.json"
    code, output, error = run("--memory", "--engine", "int8-onednn", "--engine", "transformers", "--json", str(file))
    assert code == 0, error
    assert "MiB added to a fresh process" in output
    rows = json.loads(file.read_text())["memory"]["bert-base"]
    assert [row["engine"] for row in rows] == ["transformers", "int8-onednn"]
    assert all(row["peak_rss"] >= row["loaded_rss"] > 0 for row in rows)
    assert rows[1]["reported"] > 0


def test_random_folder_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models._SIZES, "bert-base", TINY)
    with random_folder("bert-base", "qa") as folder:
        assert {file.name for file in folder.iterdir()} >= {"config.json", "model.safetensors"}
    assert not folder.exists()


def test_environment_is_plain_json_and_names_the_cpu() -> None:
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert found["cpu"]
