"""Random weights of any shape, generated on access, for measuring kernels.

Nothing has to be downloaded: speed depends on the values of weights only where the native kernel orders them by size,
and they are distributed as in trained models. Scales are about as large as there, so that integers use their range and
no value is denormal.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from q8core.arrays import Array
from q8core.quant.codes import Codebook, is_packed
from q8core.quant.plan import Plan, SitePlan
from q8core.quant.quantizer import Quantizer

LABELS = 2
_WEIGHT_STD = 0.02  # BERT's initialisation, and about what training leaves
_DEVIATIONS = 3.5
"""The largest integer in standard deviations of the weights: 3 to 5 in trained models with a scale for each output."""
_CONSTANTS = {"input_scale": 10 / 255, "input_smoothing": 1.0, "output_scale": 4 / 127}

Maker = Callable[["np.random.Generator"], Array]  # a string, so that serving does not import numpy.random (7 MiB)


class _Made(Mapping[str, Array]):
    """Arrays that are generated on each access, with the same values each time."""

    def __init__(self, makers: Mapping[str, Maker]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> Array:
        make = self._makers[name]
        return make(np.random.default_rng(zlib.crc32(name.encode())))

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


class RandomInt8(_Made):
    """The tensors of a random quantized checkpoint, in the layout of its plan."""

    def __init__(self, plan: Plan) -> None:
        super().__init__({name: _quantized(site, name) for site in plan.sites.values() for name in site.tensors})


class RandomFloat(_Made):
    """The tensors of a random float model, by the names of sites."""

    def __init__(self, plan: Plan) -> None:
        super().__init__({name: _float(site, name) for site in plan.sites.values() for name in site.site.float_tensors})


def _quantized(site: SitePlan, name: str) -> Maker:
    """Return a function that makes a tensor: integers as trained ones are distributed, scales of the usual size."""
    size, leaf, weight = site.tensors[name].shape[0], name.rpartition(".")[2], site.weight
    if weight is None:
        return _float(site, name)
    if leaf == "weight":
        return _weight(site.site.shape, weight)
    if leaf == "weight_levels":
        return lambda _: _book(weight).levels
    if leaf == "weight_zero_point":
        return lambda generator: generator.integers(0, 2**weight.bits, size, np.int8)
    if leaf == "weight_scale":
        deviations = 3**0.5 if is_packed(weight.bits) else _DEVIATIONS  # few bits have all values equally often
        largest = int(_book(weight).levels.max()) if weight.grid == "split" else weight.largest
        return _constant(_WEIGHT_STD / (largest / deviations), size)
    if leaf == "bias":
        return _biases(size) if site.kind == "static" else _constant(0.01, size)
    if leaf == "input_zero_point" and site.input is not None:
        return _constant(2 ** (site.input.bits - 1), size)
    return _constant(_CONSTANTS[leaf], size)


def _float(site: SitePlan, name: str) -> Maker:
    shape = site.site.float_tensors[name]
    if len(shape) == 2:
        return _normal(*shape)
    if site.site.kind == "norm":
        return _constant(1.0 if name.endswith(".weight") else 0.0, *shape)
    return _constant(0.01, *shape)


def _constant(value: float, size: int) -> Maker:
    dtype = np.int32 if isinstance(value, int) else np.float32
    return lambda _: np.full(size, value, dtype)


def _normal(rows: int, columns: int) -> Maker:
    return lambda generator: generator.standard_normal((rows, columns), np.float32) * np.float32(_WEIGHT_STD)


def _book(weight: Quantizer) -> Codebook:
    """Return the codebook of a weight; of a split one, that of halves with equal means, as they are at first."""
    return Codebook.of_halves(1, 0) if weight.grid == "split" else Codebook.of(weight.bits, weight.grid)


def _weight(shape: tuple[int, ...], weight: Quantizer) -> Maker:
    book = _book(weight)
    allowed = book.levels if weight.grid != "symmetric" else book.levels[abs(book.levels) <= weight.largest]

    def make(generator: np.random.Generator) -> Array:
        if is_packed(weight.bits):
            return book.encode(allowed[generator.integers(0, len(allowed), shape, np.int8)])
        values = generator.standard_normal(shape, np.float32) * np.float32(weight.largest / _DEVIATIONS)
        return np.clip(np.rint(values), -weight.largest, weight.largest).astype(np.int8)

    return make


def _biases(size: int) -> Maker:
    return lambda generator: generator.integers(-20000, 20000, size, np.int32)
