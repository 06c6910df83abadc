from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from q8core.checkpoint import Checkpoint
from q8core.errors import InputError
from q8core.training import loop
from q8core.training.processes import Processes
from q8core.training.state import STATE_FILE
from tests.training.data_parallel_run import SETTINGS, STOP_STEP
from tests.training.test_loop import BAD, GOOD, make_trainer

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run_scenario(name: str, model: Path, output: Path) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, "-m", "tests.training.data_parallel_run", name, str(model), str(output)]
    return subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def two_processes(tiny_classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("together")
    run = run_scenario("train", tiny_classifier, output)
    assert run.returncode == 0, run.stderr
    return output


def losses(folder: Path) -> Tensor:
    entries = [json.loads(line) for line in (folder / loop.LOG_FILE).read_text().splitlines()]
    return torch.tensor([entry["loss"] for entry in entries if "loss" in entry])


@pytest.mark.parametrize("scheme", ["fp32", "q8bert", "q8bert-paper"])
@pytest.mark.parametrize("name", ["begun", "unequal", "lonely"])
def test_two_processes_learn_what_one_learns(
    tiny_classifier: Path, two_processes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, name: str
) -> None:
    """Loss, gradients and ranges are the global batch's, also if it does not divide or has a single row."""
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    trainer = make_trainer(tiny_classifier, tmp_path, None if scheme == "fp32" else scheme, SETTINGS[name])
    trainer.run(trainer.task.train_features())
    together = two_processes / f"{scheme}-{name}"
    first, second = (load_file(together / f"rank{rank}.safetensors") for rank in range(2))
    # Sums in another order: an ulp can take a value to the next step of its grid, and what follows with it. So at least
    # half are equal but for their roundings, and none is further off than by steps.
    ranges: list[Tensor] = []
    for key, alone in trainer.model.state_dict().items():
        assert torch.equal(first[key], second[key]), key
        if "threshold" in key:
            ranges.append((first[key] - alone).abs() / alone)
        elif not key.endswith("key.bias"):  # softmax cancels it: its gradient is rounding noise, which Adam enlarges
            assert torch.allclose(first[key], alone, rtol=0, atol=1e-5), key
    if ranges:
        assert float(torch.stack(ranges).median()) < 5e-6
        # of weights that are still the same, the observers see the same
        assert float(torch.stack(ranges).max()) < (1e-6 if name == "begun" else 2e-3)
    off = (losses(together) - losses(tmp_path)).abs()
    assert float(off.median()) < 5e-6
    assert float(off.max()) < 2e-2


def test_a_signal_to_one_process_stops_all_and_the_run_goes_on(two_processes: Path) -> None:
    """With dropout and averaged weights, in the middle of an epoch: bit for bit what an unstopped run gives."""
    for scheme in ("fp32", "q8bert"):
        stopped, whole = two_processes / f"{scheme}-stopped", two_processes / f"{scheme}-whole"
        assert [(stopped / f"stopped-{rank}").read_text() for rank in range(2)] == [str(STOP_STEP)] * 2
        for rank in range(2):
            expected = load_file(whole / f"rank{rank}.safetensors")
            found = load_file(stopped / f"rank{rank}.safetensors")
            assert expected.keys() == found.keys()
            assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_an_error_in_one_process_ends_all(tiny_classifier: Path, tmp_path: Path) -> None:
    run = run_scenario("fail", tiny_classifier, tmp_path)
    assert run.returncode != 0
    assert "the second process breaks down" in run.stderr


def test_the_command_runs_under_torchrun_and_resumes_alone(tiny_classifier: Path, tmp_path: Path) -> None:
    """Stopped by SIGTERM to torchrun with two processes, finished by one."""
    rows = [f"a very {(GOOD if i % 2 else BAD)[i % 3]} film\t{('negative', 'positive')[i % 2]}" for i in range(24)]
    (tmp_path / "data.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    data = ["--train-file", str(tmp_path / "data.tsv"), "--dev-file", str(tmp_path / "data.tsv")]
    output = tmp_path / "int8"
    settings = ["--epochs", "16", "--batch-size", "5", "--precision", "fp32", "--evals", "10", "--output", str(output)]
    command = ["-m", "service", "train", "--task", "classify", "--model", str(tiny_classifier), *data, *settings]
    log = output / loop.LOG_FILE
    with subprocess.Popen(
        [*TORCHRUN, *command], env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as together:
        while not log.is_file() and together.poll() is None:
            time.sleep(0.05)
        together.send_signal(signal.SIGTERM)
        printed, _ = together.communicate(timeout=200)
    assert printed.count("stopping after this step") == 1, printed
    assert (output / STATE_FILE).is_file()
    alone = subprocess.run(
        [sys.executable, *command], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert alone.returncode == 0, alone.stderr
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == sorted(steps)
    assert steps[-1] == 80
    manifest = Checkpoint.open(output).manifest
    assert manifest is not None
    assert manifest.training["steps"] == 80


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_shares_are_the_batch(rows: int, size: int) -> None:
    batch = {"input_ids": torch.arange(rows * 3).view(rows, 3), "labels": torch.arange(rows)}
    shares = [Processes(rank, size).share(batch) for rank in range(size)]
    assert sum(share for _, share in shares) == pytest.approx(1)
    dealt = [row for mine, share in shares if share for row in mine["labels"].tolist()]
    assert sorted(dealt) == list(range(rows))
    for mine, share in shares:
        assert share == len(mine["labels"]) / rows or (share == 0 and mine["labels"].tolist() == [0])
        assert torch.equal(mine["input_ids"], batch["input_ids"][mine["labels"]])


def test_random_streams_differ_by_process_and_step_and_come_again() -> None:
    def draw(rank: int, seed: int, step: int) -> list[float]:
        Processes(rank, 2).seed(seed, step)
        return torch.rand(4).tolist()

    drawn = [draw(rank, seed, step) for rank in (0, 1) for seed in (1, 2) for step in (0, 1)]
    assert len({tuple(values) for values in drawn}) == 8
    assert drawn[0] == draw(0, 1, 0)


def test_a_batch_is_for_all_processes_together() -> None:
    with pytest.raises(InputError, match="batch_size is 3, too small for 4 processes"):
        Processes(0, 4).check_batch(3)
