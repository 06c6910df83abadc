"""ONNX Runtime: fp32, and its dynamic int8 quantization with one scale per output channel."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8core.bench.contender import Contender
from q8core.bench.padding import pad
from q8core.bench.peers import ONNX_FILE

if TYPE_CHECKING:
    from q8core.engines import TokenBatch
    from q8core.model.head import TaskKind

_INT8_FILE = "onnxruntime.int8.onnx"


class OnnxRuntime:
    """A session on the CPU."""

    def __init__(self, file: Path, threads: int) -> None:
        runtime: Any = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self._session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def bind(self, batch: TokenBatch) -> Callable[[], object]:
        """Pad the batch into NumPy arrays."""
        inputs = pad(batch)._asdict()
        return lambda: self._session.run(None, inputs)


def prepare_fp32(folder: Path, task: TaskKind) -> None:
    """Export the model."""
    from q8core.bench.peers.onnx_file import export_onnx

    export_onnx(folder, task)


def prepare_int8(folder: Path, task: TaskKind) -> None:
    """Export the model and quantize its weights."""
    from q8core.bench.peers.onnx_file import export_onnx

    onnx: Any = importlib.import_module("onnx")
    tools: Any = importlib.import_module("onnxruntime.quantization")
    model: Any = onnx.load(export_onnx(folder, task))
    del model.graph.value_info[:]  # shapes inferred by the exporter, which contradict the quantizer's
    tools.quantize_dynamic(model, folder / _INT8_FILE, per_channel=True, weight_type=tools.QuantType.QInt8)


def load_fp32(folder: Path, task: TaskKind, threads: int) -> Contender:
    """Open the exported model."""
    return OnnxRuntime(folder / ONNX_FILE, threads)


def load_int8(folder: Path, task: TaskKind, threads: int) -> Contender:
    """Open the quantized model."""
    return OnnxRuntime(folder / _INT8_FILE, threads)
