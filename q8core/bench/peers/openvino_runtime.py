"""OpenVINO: fp32, static int8 by NNCF's post-training quantization, and weights of 4 bits by NNCF."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8core.bench.contender import Contender
from q8core.bench.padding import pad

if TYPE_CHECKING:
    from q8core.engines import TokenBatch
    from q8core.model.head import TaskKind

_FP32_FILE, _INT8_FILE, _INT4_FILE = "openvino.fp32.xml", "openvino.int8.xml", "openvino.int4.xml"
_GROUP = 64
"""Weights of a row that share a scale: the largest power of two that divides the rows of all benchmarked shapes."""
_CALIBRATION = ((32, 17), (64, 40), (128, 90), (50, 50))
"""Shapes of NNCF's calibration batches; with random weights the ranges it finds do not matter."""


class OpenVino:
    """A model compiled for latency on the CPU, with one request."""

    def __init__(self, file: Path, threads: int, properties: dict[str, object]) -> None:
        core: Any = importlib.import_module("openvino").Core()
        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY", **properties}
        self._request: Any = core.compile_model(str(file), "CPU", settings).create_infer_request()

    def bind(self, batch: TokenBatch) -> Callable[[], object]:
        """Pad the batch into NumPy arrays."""
        inputs = pad(batch)._asdict()
        return lambda: self._request.infer(inputs, share_inputs=True, share_outputs=True)


def prepare_fp32(folder: Path, task: TaskKind) -> None:
    """Convert the exported model to OpenVINO's format, with unchanged weights."""
    from q8core.bench.peers.onnx_file import export_onnx

    runtime: Any = importlib.import_module("openvino")
    model = runtime.Core().read_model(str(export_onnx(folder, task)))
    runtime.save_model(model, folder / _FP32_FILE, compress_to_fp16=False)


def prepare_int8(folder: Path, task: TaskKind) -> None:
    """Quantize the exported model after calibrating it with a few random batches."""
    from transformers import BertConfig

    from q8core.bench.peers.onnx_file import export_onnx
    from q8core.bench.workloads import random_batch

    runtime: Any = importlib.import_module("openvino")
    tools: Any = importlib.import_module("nncf")
    vocabulary = int(BertConfig.from_pretrained(folder).vocab_size)
    batches = [pad(random_batch(lengths, vocabulary))._asdict() for lengths in _CALIBRATION]
    model = runtime.Core().read_model(str(export_onnx(folder, task)))
    quantized = tools.quantize(
        model, tools.Dataset(batches), subset_size=len(batches), model_type=tools.ModelType.TRANSFORMER
    )
    runtime.save_model(quantized, folder / _INT8_FILE, compress_to_fp16=False)


def prepare_int4(folder: Path, task: TaskKind) -> None:
    """Quantize the exported model's weights: 4 bits in linear layers, 8 in embeddings and the last layer."""
    from q8core.bench.peers.onnx_file import export_onnx

    runtime: Any = importlib.import_module("openvino")
    tools: Any = importlib.import_module("nncf")
    model = runtime.Core().read_model(str(export_onnx(folder, task)))
    adjust = tools.AdvancedCompressionParameters(group_size_fallback_mode=tools.GroupSizeFallbackMode.ADJUST)
    compressed = tools.compress_weights(
        model, mode=tools.CompressWeightsMode.INT4_SYM, group_size=_GROUP, advanced_parameters=adjust
    )
    runtime.save_model(compressed, folder / _INT4_FILE, compress_to_fp16=False)


def load_fp32(folder: Path, task: TaskKind, threads: int) -> Contender:
    """Compile the float model; without the hint OpenVINO would compute in bf16 if the CPU can."""
    return OpenVino(folder / _FP32_FILE, threads, {"INFERENCE_PRECISION_HINT": "f32"})


def load_int8(folder: Path, task: TaskKind, threads: int) -> Contender:
    """Compile the quantized model; its float parts are computed in the precision that OpenVINO chooses."""
    return OpenVino(folder / _INT8_FILE, threads, {})


def load_int4(folder: Path, task: TaskKind, threads: int) -> Contender:
    """Compile the model with weights of 4 bits; OpenVINO chooses the precision that it computes in."""
    return OpenVino(folder / _INT4_FILE, threads, {})
