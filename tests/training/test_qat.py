from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

from q8core.checkpoint import Checkpoint
from q8core.engines import load_engine
from q8core.errors import InputError
from q8core.evaluate import engine_logits, evaluate_engine
from q8core.quant import find_scheme
from q8core.quant.qat.convert import convert
from q8core.quant.qat.prepare import calibrate, prepare
from q8core.training.batches import collate
from q8core.training.qat import quantize_trained, train_quantized
from q8core.training.score import model_logits
from tests.arrays import as_tensors
from tests.models import network_of, plan_of
from tests.training.test_loop import CONFIG, make_task


def quantize_tiny(model: Path, output: Path, scheme: str = "static", keep_float: bool = True) -> Path:
    quantize_trained(str(model), make_task(model), scheme, output, "made up", keep_float)
    return output


@pytest.mark.parametrize("keep_float", [True, False])
def test_qat_ends_in_a_checkpoint_that_scores_the_same(tiny_classifier: Path, tmp_path: Path, keep_float: bool) -> None:
    task = make_task(tiny_classifier)
    config = replace(CONFIG, epochs=12, dropout=0.0)
    scores = train_quantized(str(tiny_classifier), task, config, "q8bert", tmp_path, "made up", keep_float)
    opened = Checkpoint.open(tmp_path)
    assert opened.manifest is not None
    assert opened.manifest.scores == {"metric": "accuracy", **scores}
    assert scores["int8"] == {"accuracy": 1.0}
    assert scores["fp32"]["accuracy"] < 1  # of the source, before training
    assert scores.keys() == {"fp32", "dynamic", "int8"}
    assert evaluate_engine(load_engine(opened, "int8"), task) == scores["int8"]
    _, dequantized = opened.float_tensors()
    assert dequantized is not keep_float
    assert (tmp_path / "model.safetensors").is_file() is keep_float
    if keep_float:
        BertForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("scheme", ["static", "static-attention", "dynamic"])
def test_post_training_quantization_stays_near_the_float_model(
    tiny_classifier: Path, tmp_path: Path, scheme: str
) -> None:
    opened = Checkpoint.open(quantize_tiny(tiny_classifier, tmp_path, scheme))
    features = make_task(tiny_classifier).dev_features()
    float_model = BertForSequenceClassification.from_pretrained(tiny_classifier).eval()
    with torch.no_grad():
        expected = float_model(**collate(features, "classify", with_targets=False)).logits
    fp32 = np.stack(engine_logits(load_engine(opened, "fp32"), features))
    int8 = np.stack(engine_logits(load_engine(opened, "int8"), features))
    assert np.allclose(fp32, expected, rtol=1e-5, atol=1e-4)
    spread = float(expected.max() - expected.min())
    assert float(np.abs(int8 - expected.numpy()).max()) < 0.1 * spread


FEW_BITS = """
base = "static"
linears.weight.bits = 4
slots.word_embeddings.weight.bits = 3
overrides."layers.1.*_out*".weight = { bits = 2 }
overrides."layers.0.ffn_in" = "float"
"""


@pytest.mark.parametrize("scheme", ["static", "static-attention", FEW_BITS], ids=["static", "attention", "few bits"])
def test_simulation_and_engine_agree(tiny_classifier: Path, tmp_path: Path, scheme: str) -> None:
    task = make_task(tiny_classifier)
    if scheme == FEW_BITS:
        scheme = str(tmp_path / "few-bits.toml")
        Path(scheme).write_text(FEW_BITS)
    opened = Checkpoint.open(quantize_tiny(tiny_classifier, tmp_path / "int8", scheme))
    # static calibration is deterministic: the same examples give the same simulation again
    from q8core.training.batches import calibration_batches
    from q8core.training.sample import sample

    model = BertForSequenceClassification.from_pretrained(tiny_classifier).eval()
    plan = plan_of(model, find_scheme(scheme))
    prepared = prepare(network_of(model), plan)
    calibrate(prepared, calibration_batches(sample(task, 512, 42).train_features(), task.kind, 0))
    stored = as_tensors(opened.quantized_tensors())
    assert stored.keys() == plan.tensors.keys()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in convert(prepared).items())
    simulated = np.stack(model_logits(prepared, task.dev_features(), "classify"))
    for kernel in ("fbgemm", "onednn"):
        executed = np.stack(engine_logits(load_engine(opened, "int8", kernel), task.dev_features()))
        assert np.array_equal(simulated.argmax(1), executed.argmax(1))
        assert float(np.abs(simulated - executed).max()) < 0.02


def test_weights_of_four_bits_are_trained(tiny_classifier: Path, tmp_path: Path) -> None:
    file, task = tmp_path / "four.toml", make_task(tiny_classifier)
    file.write_text('base = "q8bert"\nlinears.weight.bits = 4\n')
    config = replace(CONFIG, epochs=12, dropout=0.0)
    scores = train_quantized(str(tiny_classifier), task, config, str(file), tmp_path / "int8", "made up", False)
    assert scores["int8"] == {"accuracy": 1.0}
    opened = Checkpoint.open(tmp_path / "int8")
    assert opened.quantized_tensors()["layers.0.ffn_out.weight"].shape == (32, 32)  # of (32, 64): two in a byte
    assert evaluate_engine(load_engine(opened, "int8"), task) == scores["int8"]


def test_smoothed_inputs_are_trained_on_from_calibration(tiny_classifier: Path, tmp_path: Path) -> None:
    file, task = tmp_path / "smooth.toml", make_task(tiny_classifier)
    file.write_text('base = "q8bert"\nlinears.input = { smoothing = 0.85 }\n')
    config = replace(CONFIG, epochs=12, dropout=0.0)
    scores = train_quantized(str(tiny_classifier), task, config, str(file), tmp_path / "int8", "made up", False)
    assert scores["int8"] == {"accuracy": 1.0}
    opened = Checkpoint.open(tmp_path / "int8")
    factors = opened.quantized_tensors()["layers.0.ffn_in.input_smoothing"]
    assert float(factors.max() / factors.min()) > 1.2
    for kernel in ("native", "onednn"):
        assert evaluate_engine(load_engine(opened, "int8", kernel), task) == scores["int8"]


def test_a_dynamic_scheme_is_not_trained(tiny_classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="q8bert quantize --scheme dynamic"):
        train_quantized(str(tiny_classifier), make_task(tiny_classifier), CONFIG, "dynamic", tmp_path, "", True)


def test_a_scheme_of_the_users_own(tiny_classifier: Path, tmp_path: Path) -> None:
    file, output, task = tmp_path / "mine.toml", tmp_path / "int8", make_task(tiny_classifier)
    file.write_text('base = "q8bert"\nema_decay = 0.9\nlinears.weight = { granularity = "tensor" }\n')
    train_quantized(str(tiny_classifier), task, CONFIG, str(file), output, "made up", True)
    opened = Checkpoint.open(output)
    assert opened.scheme == find_scheme(str(file))
    assert opened.manifest is not None
    assert opened.manifest.training["scheme"] == "mine"
    assert opened.quantized_tensors()["head.dense.weight_scale"].shape == (1,)
    assert load_engine(opened, "int8").kernel


def test_an_unfinished_run_keeps_its_scheme(
    tiny_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, task = tmp_path / "mine.toml", make_task(tiny_classifier)

    def train() -> None:
        train_quantized(str(tiny_classifier), task, CONFIG, str(file), tmp_path / "int8", "made up", True)

    monkeypatch.setattr("q8core.training.loop.Trainer.discard_state", lambda _: None)
    file.write_text('base = "q8bert"\nema_decay = 0.9\n')
    train()
    file.write_text('base = "q8bert"\nema_decay = 0.8\n')
    with pytest.raises(InputError, match=r"other settings \(scheme\)"):
        train()
