"""Choosing the int8 kernel by measuring both on this CPU, on the model's own matrix sizes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from q8core.engines.kernel import LinearKernel
from q8core.engines.kernels import KERNEL_NAMES, exactness, proven_kernel
from q8core.engines.shape import ModelShape
from q8core.errors import EngineError

ROWS = (16, 128)
"""Token counts that are timed: a short sentence, and a small batch."""

_ROUNDS = 5
_BUDGET_SECONDS = 1.5


@dataclass(frozen=True)
class Choice:
    """The kernel to use, and why.

    Attributes:
        kernel: proven on this CPU.
        microseconds: kernel -> token count -> median time of one layer's linears; empty if the user chose.
        refused: kernel -> why it cannot be used here.
    """

    kernel: LinearKernel
    microseconds: dict[str, dict[int, float]] = field(default_factory=dict[str, dict[int, float]])
    refused: dict[str, str] = field(default_factory=dict[str, str])

    def facts(self) -> dict[str, object]:
        """Return the choice as plain values for `describe`."""
        return {
            "exactness": exactness(self.kernel),
            "kernel_microseconds": {k: {str(rows): t for rows, t in v.items()} for k, v in self.microseconds.items()},
            "kernels_refused": self.refused,
        }


def choose_kernel(name: str, shape: ModelShape) -> Choice:
    """Return the kernel `name`, or for "auto" the faster of those that work here.

    Raises:
        EngineError: if the kernel, or for "auto" every kernel, cannot be used; says why.
    """
    sizes = {columns for _, columns in shape.linear_shapes}
    if name != "auto":
        return Choice(proven_kernel(name, sizes))
    usable: dict[str, LinearKernel] = {}
    refused: dict[str, str] = {}
    for each in KERNEL_NAMES:
        try:
            usable[each] = proven_kernel(each, sizes)
        except (EngineError, RuntimeError, AttributeError) as error:  # an operator that this build of torch lacks
            refused[each] = str(error)
    if not usable:
        raise EngineError("no int8 kernel works on this machine: " + "; ".join(f"{k}: {v}" for k, v in refused.items()))
    times = measure_layer(usable, shape)
    best = min(usable, key=lambda each: math.prod(times[each].values()))
    return Choice(usable[best], times, refused)


def measure_layer(kernels: dict[str, LinearKernel], shape: ModelShape) -> dict[str, dict[int, float]]:
    """Return kernel -> rows -> median microseconds of one encoder layer's linears, the kernels taking turns."""
    runs = {name: _layer_runner(kernel, shape) for name, kernel in kernels.items()}
    times: dict[str, dict[int, list[float]]] = {name: {rows: [] for rows in ROWS} for name in kernels}
    deadline = time.monotonic() + _BUDGET_SECONDS
    with torch.inference_mode():
        inputs = {rows: torch.randn(rows, shape.hidden) for rows in ROWS}
        for turn in range(1 + _ROUNDS):  # the first turn warms up
            for rows, x in inputs.items():
                for name, run in runs.items():
                    begin = time.perf_counter()
                    run(x)
                    if turn:
                        times[name][rows].append((time.perf_counter() - begin) * 1e6)
            if turn and time.monotonic() > deadline:
                break
    return {name: {rows: round(sorted(t)[len(t) // 2], 1) for rows, t in by.items()} for name, by in times.items()}


def _layer_runner(kernel: LinearKernel, shape: ModelShape) -> Callable[[torch.Tensor], object]:
    """Return a function that computes a layer's linears on x (rows, hidden), with the quantization between."""
    generator = torch.Generator().manual_seed(0)
    qkv, out, inner, outer = (
        kernel.pack(
            torch.randint(-127, 128, size, dtype=torch.int8, generator=generator),
            torch.full((size[0],), 1e-4),
            torch.zeros(size[0]),
        )
        for size in shape.linear_shapes
    )
    scale = torch.tensor([0.05])

    def run(x: torch.Tensor) -> None:
        x_q = kernel.quantize(x, scale)
        qkv.linear(x_q)
        y = out.linear_add(x_q, x.clone())
        outer.linear_add(inner.linear_gelu_quantize(kernel.quantize(y, scale), scale), y)

    return run
