"""The result of an analysis: the bits of each matrix, what they cost, and the scheme file that holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from q8core.errors import InputError
from q8core.model.network import Network
from q8core.model.sites import LAYER_LINEARS
from q8core.quant import PRESETS, Quantizer
from q8core.quant.rules.mse import mse_scale, squared_errors
from q8core.training.sensitivity.allocation import (
    BITS,
    Matrix,
    average_bits,
    by_budget,
    by_rank,
    total_cost,
    uniform,
)
from q8core.training.sensitivity.record import Estimate, Measured

Method = Literal["budget", "rank"]

_GRIDS = {bits: Quantizer(bits, granularity="channel", rule="mse", gradient="masked") for bits in BITS}


@dataclass(frozen=True)
class Wanted:
    """How bits are allocated.

    Attributes:
        average: bits of a weight on average, at most.
        method: "budget", by the loss that each matrix costs; "rank", by the eigenvalues of its layer.
        reverse: whether the sensitive ones get fewer bits, as a control.
        base: the preset that the scheme changes.
    """

    average: float
    method: Method = "budget"
    reverse: bool = False
    base: str = "q8bert"


@dataclass(frozen=True)
class Sensitivity:
    """What was measured and decided.

    Attributes:
        measured: the samples.
        traces: path -> trace of its block of the Hessian.
        omegas: the sensitivity of each layer; empty if no eigenvalue was measured.
        matrices: sizes, traces and errors.
        wanted: how bits were allocated.
        bits: path -> bits.
    """

    measured: Measured
    traces: Mapping[str, Estimate]
    omegas: Sequence[float]
    matrices: Sequence[Matrix]
    wanted: Wanted
    bits: Mapping[str, int]

    @property
    def average(self) -> float:
        """Bits of a weight, averaged over all matrices."""
        return average_bits(self.matrices, self.bits)

    @property
    def cost(self) -> float:
        """By how much the bits increase the loss, in second order."""
        return total_cost(self.matrices, self.bits)

    def uniform(self) -> tuple[int, float]:
        """Return the most bits that all matrices can have within the budget, and by how much they increase the loss."""
        bits = uniform(self.matrices, self.wanted.average)
        return next(iter(bits.values())), total_cost(self.matrices, bits)

    def layers(self) -> list[list[Matrix]]:
        """Return the matrices, layer by layer, in the order of `LAYER_LINEARS`."""
        count = len(LAYER_LINEARS)
        return [list(self.matrices[start : start + count]) for start in range(0, len(self.matrices), count)]

    def describe(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        bits, cost = self.uniform()
        return {
            **self.measured.identity,
            "probes": self.measured.probes,
            "relative_error": self.measured.relative_error,
            "seconds": round(self.measured.seconds, 1),
            "matrices": {
                one.path: {
                    "size": one.size,
                    "trace": one.trace,
                    "trace_error": self.traces[one.path].error,
                    "squared_errors": {str(bits): one.errors[bits] for bits in BITS},
                    "bits": self.bits[one.path],
                }
                for one in self.matrices
            },
            "eigenvalues": self.measured.eigenvalues,
            "omegas": list(self.omegas),
            "allocation": {**vars(self.wanted), "bits": self.average, "loss_increase": self.cost},
            "uniform": {"bits": bits, "loss_increase": cost},
        }


def check_wanted(wanted: Wanted, subsets: int) -> None:
    """Refuse, before anything is measured, what no measurement can allocate.

    Raises:
        InputError: rank without eigenvalues, an average outside the range of bits, or a base that is no preset.
    """
    if wanted.method not in ("budget", "rank"):
        raise InputError(f"--allocation is {wanted.method!r}; allowed: budget, rank")
    allowed = [name for name, scheme in PRESETS.items() if scheme.average_bits is None]
    if wanted.base not in allowed:
        raise InputError(f"--scheme is {wanted.base!r}; allowed are the presets of given bits: {', '.join(allowed)}")
    if not BITS[0] <= wanted.average <= BITS[-1]:
        raise InputError(f"--average-bits is {wanted.average:g}; allowed: {BITS[0]} to {BITS[-1]}")
    if wanted.method == "rank" and not subsets:
        raise InputError("--subsets is 0, but --allocation rank goes by the eigenvalues on random subsets")


def allocate(network: Network, measured: Measured, wanted: Wanted) -> Sensitivity:
    """Return the bits of each matrix of a measured network.

    Raises:
        InputError: the average is impossible; says what is allowed.
    """
    traces = measured.traces()
    matrices: list[Matrix] = []
    for path, trace in traces.items():
        weight = network.get_parameter(f"{path}.weight").detach()
        errors = {bits: squared_error(weight, grid.largest) for bits, grid in _GRIDS.items()}
        matrices.append(Matrix(path, weight.numel(), trace.mean, errors))
    omegas = measured.omegas()
    if wanted.method == "rank":
        layer_of = {one.path: place // len(LAYER_LINEARS) for place, one in enumerate(matrices)}
        bits = by_rank(matrices, layer_of, omegas, wanted.average, reverse=wanted.reverse)
    else:
        bits = by_budget(matrices, wanted.average, reverse=wanted.reverse)
    return Sensitivity(measured, traces, omegas, matrices, wanted, bits)


def squared_error(weight: Tensor, largest: int) -> float:
    """Return the least squared error of a weight (rows, columns) on a symmetric grid with a step for each row."""
    return float(squared_errors(weight, mse_scale(weight, largest), largest).sum(dtype=torch.float64))


def quantizer_of(bits: int) -> dict[str, object]:
    """Return how a matrix of so many bits is quantized, on the grid whose error was counted.

    It is whole: the scheme that it changes may have another grid.
    """
    return {name: value for name, value in asdict(_GRIDS[bits]).items() if name != "smoothing"}


def scheme_text(found: Sensitivity) -> str:
    """Return the bits as a scheme file in TOML."""
    wanted = found.wanted
    how = f"{wanted.method}, reversed" if wanted.reverse else wanted.method
    lines = [
        f"# Bits of each matrix of the encoder, by q8bert sensitivity: {how}, {found.average:.4g} bits on average.",
        f'base = "{wanted.base}"',
        *(f'overrides."{path}".weight = {_inline(quantizer_of(bits))}' for path, bits in found.bits.items()),
    ]
    return "\n".join(lines) + "\n"


def _inline(values: Mapping[str, object]) -> str:
    """Return plain values as a TOML table in one line."""
    return f"{{ {', '.join(f'{name} = {json.dumps(value)}' for name, value in values.items())} }}"
