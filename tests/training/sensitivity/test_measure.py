from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from q8core.errors import CheckpointError, InputError, TrainingError
from q8core.quant import find_scheme
from q8core.quant.qat.prepare import prepare
from q8core.training.model import load_model
from q8core.training.score import model_logits
from q8core.training.sensitivity import measure as measuring
from q8core.training.sensitivity.allocation import average_bits
from q8core.training.sensitivity.measure import Effort, LossName, measure
from q8core.training.sensitivity.record import LEAST_PROBES, STATE_FILE, Measured
from q8core.training.sensitivity.report import Method, Wanted, allocate, scheme_text
from tests.conftest import save_tiny
from tests.training.test_distillation import qa_task
from tests.training.test_loop import make_task

EFFORT = Effort(examples=20, loss="labels", probes=10, tolerance=0.0, subsets=2)


def samples(measured: Measured) -> list[object]:
    return [measured.batches, measured.samples, measured.eigenvalues]


def test_a_stopped_measurement_ends_with_the_same_numbers(
    tiny_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task(tiny_classifier)
    _, whole = measure(str(tiny_classifier), task, EFFORT, tmp_path / "whole.json")
    assert whole.probes == 10 * len(whole.batches)
    save, count = Measured.save, 0

    def stopping(self: Measured, file: Path) -> None:
        nonlocal count
        save(self, file)
        count += 1
        if count in (5, 31):  # between traces, and after the first subset
            raise KeyboardInterrupt

    monkeypatch.setattr(Measured, "save", stopping)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            measure(str(tiny_classifier), task, EFFORT, tmp_path / "stopped.json")
    _, resumed = measure(str(tiny_classifier), task, EFFORT, tmp_path / "stopped.json")
    assert count == 32
    assert samples(resumed) == samples(whole)
    assert resumed.traces() == whole.traces()


def test_what_is_known_is_not_measured_again(
    tiny_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, file = make_task(tiny_classifier), tmp_path / STATE_FILE
    _, first = measure(str(tiny_classifier), task, replace(EFFORT, tolerance=1e9), file)
    assert first.probes == LEAST_PROBES * len(first.batches)
    monkeypatch.setattr(measuring, "trace_sample", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(measuring, "top_eigenvalues", lambda *_: pytest.fail("measured again"))
    _, second = measure(str(tiny_classifier), task, replace(EFFORT, tolerance=1e9, subsets=0), file)
    assert samples(second) == samples(first)


def test_traces_are_near_those_of_the_whole_hessian(tiny_classifier: Path, tmp_path: Path) -> None:
    """Of one matrix of 32 x 32, column by column, on all examples at once."""
    task = make_task(tiny_classifier, 12)
    _, measured = measure(str(tiny_classifier), task, Effort(12, "labels", 1, 60, 0.0, 0), tmp_path / STATE_FILE)
    path = "layers.1.value"
    network = load_model(str(tiny_classifier), "classify").network.eval().requires_grad_(False)
    weight = network.get_parameter(f"{path}.weight").requires_grad_()
    curvature = measuring._Curvature(network, task, Effort(loss="labels"))
    (gradient,) = torch.autograd.grad(curvature.loss(range(12)), weight, create_graph=True)
    trace = 0.0
    for place in range(gradient.numel()):
        (row,) = torch.autograd.grad(gradient.flatten()[place], weight, retain_graph=True)
        trace += float(row.flatten()[place])
    found = measured.traces()[path]
    assert abs(found.mean - trace) < 4 * found.error
    assert found.error < abs(trace)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first layer's output hardly depends on its input: only the second layer's matrices matter."""
    folder = save_tiny(tmp_path_factory.mktemp("planted") / "model", "classify", seed=6)
    weights = load_file(folder / "model.safetensors")
    weights["bert.encoder.layer.0.output.LayerNorm.weight"].fill_(0.02)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("loss", ["answers", "labels"])
@pytest.mark.parametrize("method", ["budget", "rank"])
def test_a_planted_sensitive_layer_is_found_and_reversed_bits_are_worse(
    planted: Path, tmp_path: Path, loss: LossName, method: Method
) -> None:
    """Worse as computed: with the weights on their grids, by the scheme file, against the float model's answers."""
    task = make_task(planted)
    network, measured = measure(str(planted), task, replace(EFFORT, loss=loss), tmp_path / STATE_FILE)
    first, second = measured.omegas()
    assert second > 10 * first
    features = task.dev_features()
    expected = np.stack(model_logits(network, features, "classify"))
    differences: list[float] = []
    for reverse in (False, True):
        found = allocate(network, measured, Wanted(3.0, method, reverse, base="dynamic"))
        assert found.average <= 3
        if not reverse:
            lower, upper = (average_bits(layer, found.bits) for layer in found.layers())
            assert upper > lower + 0.5
        (tmp_path / "bits.toml").write_text(scheme_text(found))
        model = load_model(str(planted), "classify")
        prepare(model.network.eval(), model.plan(find_scheme(str(tmp_path / "bits.toml"))))
        logits = np.stack(model_logits(model.network, features, "classify"))
        differences.append(float(np.abs(logits - expected).mean()))
    assert differences[0] < differences[1]


def test_own_answers_have_no_negative_curvature(tiny_classifier: Path, tmp_path: Path) -> None:
    """The model is not trained, so that its labels' Hessian has negative traces."""
    task, effort = make_task(tiny_classifier), replace(EFFORT, probes=25)
    _, answers = measure(str(tiny_classifier), task, replace(effort, loss="answers"), tmp_path / "answers.json")
    _, labels = measure(str(tiny_classifier), task, effort, tmp_path / "labels.json")
    assert all(trace.mean > -3 * trace.error for trace in answers.traces().values())
    assert any(trace.mean < -3 * trace.error for trace in labels.traces().values())
    assert all(value > 0 for values in answers.eigenvalues for value in values)


def test_answers_to_questions_are_measured_too(tiny_qa: Path, tmp_path: Path) -> None:
    _, measured = measure(str(tiny_qa), qa_task(tiny_qa), replace(EFFORT, subsets=1), tmp_path / STATE_FILE)
    assert measured.probes == 10
    assert np.isfinite(measured.omegas()).all()


def test_other_settings_and_damage_are_refused(tiny_classifier: Path, tmp_path: Path) -> None:
    task, file = make_task(tiny_classifier), tmp_path / STATE_FILE
    measure(str(tiny_classifier), task, EFFORT, file)
    with pytest.raises(InputError, match=r"other settings \(examples_sha256, seed\)"):
        measure(str(tiny_classifier), task, replace(EFFORT, seed=1), file)
    other = save_tiny(tmp_path / "other", "classify", seed=9)
    with pytest.raises(InputError, match=r"other settings \(model, model_sha256\)"):
        measure(str(other), task, EFFORT, file)
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "samples": values["samples"][1:]}))
    with pytest.raises(CheckpointError, match="samples are not those of its batches"):
        measure(str(tiny_classifier), task, EFFORT, file)
    file.write_text(json.dumps(values)[:-9])
    with pytest.raises(CheckpointError, match="not valid JSON"):
        measure(str(tiny_classifier), task, EFFORT, file)


def test_models_that_cannot_be_measured_are_refused(tiny_classifier: Path, tiny_qa: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="was not fine-tuned for this task"):
        measure(str(tiny_qa), make_task(tiny_classifier), EFFORT, tmp_path / STATE_FILE)
    with pytest.raises(TrainingError, match="infinite or NaN"):
        measuring._finite([1.0, float("nan")])
