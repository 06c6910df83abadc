"""Loading from a checkpoint folder, and replaying its golden inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

from q8core.checkpoint import Checkpoint, GoldenExample, write_checkpoint
from q8core.engines import TokenBatch, load_engine, self_test
from q8core.engines.choice.fp32_kernels import FP32_KERNEL_NAMES
from q8core.engines.layers.model import Model
from q8core.errors import CheckpointError, EngineError
from q8core.quant import preset
from q8core.quant.qat.convert import arrays, convert
from q8core.quant.qat.prepare import calibrate, prepare
from tests.engines.conftest import KERNELS, padded, random_sequences
from tests.models import config_of, network_of, plan_of

IDS = random_sequences([9, 14, 3], seed=2)


def write(folder: Path, source: Path, shift: float = 0.0) -> Path:
    """An int8 checkpoint of a float folder, with golden logits that are off by `shift`."""
    model = BertForSequenceClassification.from_pretrained(source).eval()
    prepared = prepare(network_of(model), plan_of(model, preset("q8bert")))
    calibrate(prepared, [padded(IDS)])
    facts = {
        "name": "tiny", "config": config_of(model), "task": "classify", "labels": ("negative", "positive"),
        "max_length": 64, "scheme": preset("q8bert"), "tensors": arrays(convert(prepared)), "tokenizer_folder": source,
    }  # fmt: skip
    write_checkpoint(folder, **facts)
    logits = {}
    for backend in ("fp32", "int8"):
        engine, batch = load_engine(folder, backend), TokenBatch.pack(IDS)
        logits[backend] = [(part + shift).tolist() for part in batch.split(engine.infer(batch), engine.reads)]
    golden = [
        GoldenExample(list(ids), list(types), {backend: parts[place] for backend, parts in logits.items()})
        for place, (ids, types) in enumerate(IDS)
    ]
    write_checkpoint(folder, golden=golden, **facts)
    return folder


@pytest.fixture(scope="module")
def int8_folder(tmp_path_factory: pytest.TempPathFactory, tiny_classifier: Path) -> Path:
    return write(tmp_path_factory.mktemp("int8") / "model", tiny_classifier)


@pytest.mark.parametrize(
    ("backend", "kernel"),
    [
        *(("int8", kernel) for kernel in ("auto", *KERNELS)),
        *(("fp32", kernel) for kernel in ("auto", *FP32_KERNEL_NAMES)),
    ],
)
def test_golden_inputs_replay(int8_folder: Path, backend: str, kernel: str) -> None:
    checkpoint = Checkpoint.open(int8_folder)
    engine = load_engine(checkpoint, backend, kernel)
    result = self_test(engine, checkpoint)
    assert result.examples == len(IDS)
    assert result.max_abs_diff <= 1e-2
    assert result.labels_equal
    assert engine.describe()["dequantized"] is (backend == "fp32")
    assert engine.describe()["scheme"] == (None if backend == "fp32" else "q8bert")


def test_other_logits_than_recorded_are_an_error(tmp_path: Path, tiny_classifier: Path) -> None:
    checkpoint = Checkpoint.open(write(tmp_path / "model", tiny_classifier, shift=0.5))
    engine = load_engine(checkpoint, "int8", "onednn")
    with pytest.raises(EngineError, match=r"golden inputs on int8 \(onednn\) .* off by \d+\.\d\d%, allowed: 10%"):
        self_test(engine, checkpoint)
    assert self_test(engine, checkpoint, tolerance=9.9).max_abs_diff == pytest.approx(0.5, abs=1e-3)


def test_a_float_folder_serves_fp32_only(tiny_classifier: Path) -> None:
    engine = load_engine(tiny_classifier, "fp32")
    assert engine.describe()["dequantized"] is False
    assert self_test(engine, Checkpoint.open(tiny_classifier)).examples == 0
    with pytest.raises(CheckpointError, match="q8bert quantize"):
        load_engine(tiny_classifier, "int8")


def test_an_engine_outlives_its_files(tmp_path: Path, tiny_classifier: Path) -> None:
    """Nothing that stays loaded is a view of the mapped file."""
    folder = write(tmp_path / "model", tiny_classifier)
    engines = [load_engine(folder, backend) for backend in ("fp32", "int8")]
    batch = TokenBatch.pack(IDS)
    before = [engine.infer(batch) for engine in engines]
    for file in folder.glob("*.safetensors"):
        file.write_bytes(b"\0" * file.stat().st_size)
    for engine, expected in zip(engines, before, strict=True):
        assert np.array_equal(engine.infer(batch), expected)


def test_nan_logits_fail_the_self_test(int8_folder: Path) -> None:
    checkpoint = Checkpoint.open(int8_folder)
    engine = load_engine(checkpoint, "fp32", "onednn")
    assert isinstance(engine.model, Model)
    with torch.inference_mode():  # what was loaded are inference tensors
        engine.model.embeddings.norm.weight.fill_(float("nan"))
    with pytest.raises(EngineError, match="off by nan"):
        self_test(engine, checkpoint)
