"""The exported model, run by onnxruntime (and by onnx's own reference), beside our engine on the same checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from q8core.bench.padding import pad
from q8core.checkpoint import Checkpoint
from q8core.cli import app
from q8core.engines import TokenBatch, load_engine
from q8core.errors import CheckpointError, InputError, SchemeError
from q8core.export import onnx_model
from q8core.export.onnx_model import export_onnx
from q8core.machine import cpu
from q8core.quant import Scheme, preset
from q8core.tasks.classify import encode_text
from tests.quant.test_asymmetric import asymmetric, symmetric
from tests.service.tiny_checkpoints import make_checkpoint

BUNDLED = Path(__file__).parents[2] / "service" / "checkpoints"
TEXTS = [
    "a gripping, beautifully acted film",
    "dull.",
    "it is not without charm, but the plot never goes anywhere and the jokes fall flat",
    "one of the best films of the year",
    "",
]


def sequences(checkpoint: Checkpoint) -> list[tuple[list[int], list[int]]]:
    encoded = [encode_text(checkpoint.tokenizer(), text, None, checkpoint.max_length) for text in TEXTS]
    encoded.append(encode_text(checkpoint.tokenizer(), TEXTS[0], TEXTS[2], checkpoint.max_length))
    return [(one.input_ids, one.token_type_ids) for one in encoded]


def inputs_of(batch: TokenBatch) -> dict[str, Any]:
    return pad(batch)._asdict()


def class_logits(checkpoint: Checkpoint, batch: TokenBatch) -> Any:
    """Our engine's logits, (B, labels)."""
    engine = load_engine(checkpoint, "int8", "fbgemm", 1)
    rows = batch.split(engine.infer(batch), engine.reads)
    return np.stack([row.reshape(-1) for row in rows])


# The products of u8 and s8 of onnxruntime add pairs in 16 bits where the CPU has no instruction for four at once.
exact_products = pytest.mark.skipif(
    not any("vnni" in flag or "amx_int8" in flag for flag in cpu()[1]),
    reason="onnxruntime's integer products saturate on a CPU without VNNI",
)


def session(file: Path) -> Any:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    return runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


@pytest.fixture
def exported(tmp_path: Path) -> Callable[[Path], tuple[Checkpoint, Path]]:
    pytest.importorskip("onnx", reason="onnx is not installed")

    def export(folder: Path) -> tuple[Checkpoint, Path]:
        checkpoint, file = Checkpoint.open(folder), tmp_path / "model.onnx"
        assert export_onnx(checkpoint, file) == file.stat().st_size
        return checkpoint, file

    return export


def assert_our_logits(checkpoint: Checkpoint, batch: TokenBatch, found: Any) -> None:
    """The outputs of a runtime are our engine's logits."""
    engine = load_engine(checkpoint, "int8", "fbgemm", 1)
    for place, row in enumerate(batch.split(engine.infer(batch), engine.reads)):
        spans = [out[place, : batch.lengths[place]] for out in found]
        theirs = found[0][place] if checkpoint.task == "classify" else np.stack(spans, axis=1)
        # float32 in another order can move a value over a rounding border: a step of a grid, not more
        np.testing.assert_allclose(theirs, row.reshape(theirs.shape), atol=0.05)


@exact_products
@pytest.mark.parametrize("scheme", ["static", "asymmetric"])
@pytest.mark.parametrize("task", ["classify", "qa"])
def test_tiny_models_give_our_logits(task: str, scheme: str, exported: Callable[[Path], Any], tmp_path: Path) -> None:
    rules = asymmetric("static") if scheme == "asymmetric" else preset(scheme)
    checkpoint, file = exported(make_checkpoint(tmp_path / "tiny", task, scheme=rules, seed=3))
    batch = TokenBatch.pack(sequences(checkpoint))
    assert_our_logits(checkpoint, batch, session(file).run(None, inputs_of(batch)))


def test_the_bundled_sentiment_model_gives_our_labels(exported: Callable[[Path], Any]) -> None:
    checkpoint, file = exported(BUNDLED / "sst2-minilm-l6")
    batch = TokenBatch.pack(sequences(checkpoint))
    ours = class_logits(checkpoint, batch)
    [found] = session(file).run(None, inputs_of(batch))
    assert found.argmax(1).tolist() == ours.argmax(1).tolist()
    assert np.abs(found - ours).mean() < 0.05
    assert file.stat().st_size < 1.1 * (BUNDLED / "sst2-minilm-l6" / "model.int8.safetensors").stat().st_size


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("rules", [symmetric, asymmetric])
@pytest.mark.parametrize("task", ["classify", "qa"])
def test_onnxs_own_reference_agrees(
    task: str, rules: Callable[[str], Scheme], bits: int, exported: Callable[[Path], Any], tmp_path: Path
) -> None:
    """Weights of few bits are stored in bytes there."""
    scheme = replace(rules("static"), overrides={"*.ffn_in": {"weight": {"bits": bits}}})
    checkpoint, file = exported(make_checkpoint(tmp_path / "tiny", task, scheme=scheme, seed=4))
    reference = pytest.importorskip("onnx.reference", reason="onnx is not installed").ReferenceEvaluator(str(file))
    batch = TokenBatch.pack(sequences(checkpoint)[:3])
    assert_our_logits(checkpoint, batch, reference.run(None, inputs_of(batch)))


@pytest.mark.parametrize("rules", [symmetric, asymmetric])
def test_inputs_of_4_bits_and_zero_points_of_weights(
    rules: Callable[[str], Scheme], exported: Callable[[Path], Any], tmp_path: Path
) -> None:
    """A grid of 16 values ends before QuantizeLinear saturates."""
    weight = {"bits": 3, "grid": "asymmetric", "granularity": "group", "groups": 4}
    overrides = {"layers.*": {"weight": weight, "input": {"bits": 4, "smoothing": 0.0, "rule": "mse"}}}
    scheme = replace(rules("static"), overrides=overrides)
    checkpoint, file = exported(make_checkpoint(tmp_path / "tiny", "classify", scheme=scheme, seed=4))
    reference = pytest.importorskip("onnx.reference", reason="onnx is not installed").ReferenceEvaluator(str(file))
    batch = TokenBatch.pack(sequences(checkpoint)[:3])
    assert_our_logits(checkpoint, batch, reference.run(None, inputs_of(batch)))


def test_padding_and_neighbours_change_nothing(exported: Callable[[Path], Any], tmp_path: Path) -> None:
    checkpoint, file = exported(make_checkpoint(tmp_path / "tiny", "classify", seed=5))
    ours, texts = session(file), sequences(checkpoint)
    [together] = ours.run(None, inputs_of(TokenBatch.pack(texts)))
    for row, text in zip(together, texts, strict=True):
        [[alone]] = ours.run(None, inputs_of(TokenBatch.pack([text])))
        np.testing.assert_allclose(row, alone, atol=0.05)


def test_weights_are_int8_as_stored_and_products_are_integers(
    exported: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, file = exported(make_checkpoint(tmp_path / "tiny", "classify"))
    onnx = pytest.importorskip("onnx")
    model = onnx.load(file)
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    for name, tensor in checkpoint.quantized_tensors().items():
        if tensor.dtype == np.int8:
            expected = tensor if "_embeddings" in name else tensor.T
            np.testing.assert_array_equal(stored[name], expected)
        if name.endswith(".bias") and tensor.dtype == np.int32:
            np.testing.assert_array_equal(stored[name], tensor)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["task"] == "classify"
    assert metadata["labels"] == '["NEGATIVE", "NEUTRAL", "POSITIVE"]'
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    options = runtime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(tmp_path / "optimized.onnx")
    kinds = [node.op_type for node in optimized.graph.node]
    layers = 2
    # of each layer six linears and Q K^T
    assert kinds.count("MatMulIntegerToFloat") == 7 * layers


@pytest.mark.parametrize(("name", "words"), [("dynamic", "dynamic scheme"), ("static-attention", "attention_products")])
def test_what_onnx_cannot_say_is_refused(name: str, words: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "model", "classify", scheme=preset(name)))
    with pytest.raises(SchemeError, match=words):
        export_onnx(checkpoint, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_a_float_checkpoint_is_refused(tiny_classifier: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    with pytest.raises(CheckpointError, match="q8bert quantize"):
        export_onnx(Checkpoint.open(tiny_classifier), tmp_path / "model.onnx")


def test_without_onnx_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_model, "find_spec", lambda name: None)
    folder = make_checkpoint(tmp_path / "tiny", "classify")
    end = CliRunner().invoke(app, ["export", str(folder), "--onnx", str(tmp_path / "x.onnx")])
    assert isinstance(end.exception, InputError)
    assert "q8bert[export]" in str(end.exception)


def test_the_command(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    folder, file = make_checkpoint(tmp_path / "tiny", "classify"), tmp_path / "model.onnx"
    end = CliRunner().invoke(app, ["export", "--onnx", str(file), str(folder)])
    assert end.exit_code == 0, end.output
    assert str(file) in end.output
    end = CliRunner().invoke(app, ["export", "--onnx", str(tmp_path / "none" / "x.onnx"), str(folder)])
    assert "does not exist" in str(end.exception)
