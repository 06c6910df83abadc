"""Builds an ONNX graph: nodes and constants with readable names, quantization as QuantizeLinear/DequantizeLinear.

onnx is an extra (`export`), imported by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from q8core.quant.ops.stored import integer_limits
from q8core.quant.quantizer import MOST_BITS

OPSET = 20
IR_VERSION = 9

Array = NDArray[Any]


class GraphBuilder:
    """Collects nodes in the order of computation; every method returns the name of its output."""

    def __init__(self) -> None:
        self._helper: Any = import_module("onnx.helper")
        self._arrays: Any = import_module("onnx.numpy_helper")
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._quantized: dict[tuple[str, float, int | None, int], tuple[str, str, str]] = {}

    def constant(self, name: str, value: Array) -> str:
        """Add a tensor of the model."""
        assert name not in self._constants, name
        self._constants[name] = self._arrays.from_array(np.asarray(value, order="C"), name)
        return name

    def node(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator; its output has the same name."""
        self._nodes.append(self._helper.make_node(op, list(inputs), [name], name=f"{name}:{op}", **attributes))
        return name

    def integers(self, name: str, *values: int) -> str:
        """Add a list of int64, such as a shape or axes."""
        return self.constant(name, np.array(values, np.int64))

    def dequantize(self, name: str, q: str, scale: Array, axis: int = 0) -> str:
        """Return ``q * scale``; with one scale, or one per index along the axis. Zero points are 0."""
        values = scale.reshape(()) if scale.size == 1 else scale
        return self.node("DequantizeLinear", name, q, self.constant(f"{name}.scale", values), axis=axis)

    def quantize(self, name: str, x: str, scale: float, zero_point: int | None = None, bits: int = 8) -> str:
        """Quantize x on our grid and return the float32 values of the grid.

        The integers are u8: onnxruntime on x86 computes products of u8 and int8 in integers, but those of int8 and int8
        in floats. QuantizeLinear rounds half to even, as we do. It saturates at the ends of an asymmetric grid. A
        symmetric grid of -127 to 127 steps has the zero point 128, with which it would saturate at -128, so x is
        clipped to -127 steps first, and to both ends of a grid of fewer bits. A tensor that several layers read on the
        same grid is quantized once; each layer has its own DequantizeLinear, because onnxruntime does not fuse a shared
        one.
        """
        key = (x, scale, zero_point, bits)
        if key not in self._quantized:
            step = self.constant(f"{name}.scale", np.array(scale, np.float32))
            zero = self.constant(f"{name}.zero", np.array(128 if zero_point is None else zero_point, np.uint8))
            if zero_point is None or bits < MOST_BITS:
                ends = integer_limits(zero_point, bits)[: 1 if bits == MOST_BITS else 2]
                names = zip(("lowest", "highest"), ends, strict=False)
                limits = [self.constant(f"{name}.{end}", np.array(q * scale, np.float32)) for end, q in names]
                x = self.node("Clip", f"{name}.cut", x, *limits)
            self._quantized[key] = (self.node("QuantizeLinear", f"{name}.q", x, step, zero), step, zero)
        return self.node("DequantizeLinear", name, *self._quantized[key])

    def model(
        self,
        name: str,
        inputs: Mapping[str, Sequence[str | int]],
        outputs: Mapping[str, Sequence[str | int]],
        metadata: Mapping[str, str],
    ) -> Any:
        """Return the checked model with int64 inputs and float32 outputs of these shapes; a name means any size."""
        types: Any = import_module("onnx").TensorProto
        graph = self._helper.make_graph(
            self._nodes,
            name,
            [self._helper.make_tensor_value_info(one, types.INT64, shape) for one, shape in inputs.items()],
            [self._helper.make_tensor_value_info(one, types.FLOAT, shape) for one, shape in outputs.items()],
            list(self._constants.values()),
        )
        model = self._helper.make_model(
            graph, opset_imports=[self._helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="q8bert"
        )
        self._helper.set_model_props(model, dict(metadata))
        import_module("onnx.checker").check_model(model, full_check=True)
        return model
