"""Training with a scheme that leaves its bits to the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from q8core.checkpoint import Checkpoint
from q8core.errors import CheckpointError, InputError, SchemeError, TrainingError
from q8core.quant import find_scheme
from q8core.quant.bits import bits_of
from q8core.training.qat import train_quantized
from q8core.training.sensitivity.measure import Effort
from q8core.training.sensitivity.record import STATE_FILE
from tests.conftest import save_tiny
from tests.training.test_qat import CONFIG, make_task

ONE_STEP = replace(CONFIG, max_steps=1)


@pytest.fixture(autouse=True)
def few_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("q8core.training.sensitivity.choose._EFFORT", Effort(examples=8, probes=4, subsets=0))


@pytest.fixture
def scheme(tmp_path: Path) -> str:
    (tmp_path / "mixed.toml").write_text('base = "q8bert"\naverage_bits = 3.5\n')
    return str(tmp_path / "mixed.toml")


def test_each_matrix_has_the_bits_that_were_chosen_on_the_model(
    tiny_classifier: Path, tmp_path: Path, scheme: str
) -> None:
    output = tmp_path / "int8"
    train_quantized(str(tiny_classifier), make_task(tiny_classifier), ONE_STEP, scheme, output, "made up", False)
    opened = Checkpoint.open(output)
    assert opened.manifest is not None
    chosen = opened.manifest.training["chosen_bits"]
    bits = bits_of(opened.plan)
    assert bits.mixed
    assert 3 < bits.weights <= 3.5
    assert bits.weights == pytest.approx(chosen["average_bits"], abs=1e-3)
    assert chosen["loss_increase"] < chosen["uniform"]["loss_increase"]
    assert chosen["uniform"]["bits"] == 3
    assert opened.scheme is not None
    assert opened.scheme.average_bits is None, "whoever trains on from it has the same bits"
    assert not (output / STATE_FILE).exists()


def test_a_stopped_run_measures_nothing_again(
    tiny_classifier: Path, tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, task = tmp_path / "int8", make_task(tiny_classifier)

    def stop(*_: object) -> None:
        raise TrainingError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr("q8core.training.qat.Trainer.run", stop)
        with pytest.raises(TrainingError):
            train_quantized(str(tiny_classifier), task, ONE_STEP, scheme, output, "made up", False)
    assert (output / STATE_FILE).is_file()
    monkeypatch.setattr("q8core.training.sensitivity.measure.trace_sample", stop)
    train_quantized(str(tiny_classifier), task, ONE_STEP, scheme, output, "made up", False)
    assert bits_of(Checkpoint.open(output).plan).mixed


def test_a_model_that_has_not_learned_the_task_is_refused(tiny_classifier: Path, tmp_path: Path, scheme: str) -> None:
    folder = save_tiny(tmp_path / "qa", "qa")
    with pytest.raises(CheckpointError, match="was not fine-tuned for this task"):
        train_quantized(str(folder), make_task(tiny_classifier), ONE_STEP, scheme, tmp_path / "int8", "made up", False)


def test_a_model_that_the_same_training_cuts_is_refused(tiny_classifier: Path, tmp_path: Path, scheme: str) -> None:
    half, task = replace(ONE_STEP, width=0.5), make_task(tiny_classifier)
    with pytest.raises(InputError, match=r"which --width 0\.5 cuts: train with --width first"):
        train_quantized(str(tiny_classifier), task, half, scheme, tmp_path / "int8", "made up", False)


def test_an_average_that_no_bits_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "low.toml").write_text('base = "q8bert"\naverage_bits = 1.5\n')
    with pytest.raises(SchemeError, match=r"low\.toml: scheme: average_bits is 1\.5; allowed: 2 to 8"):
        find_scheme(str(tmp_path / "low.toml"))
