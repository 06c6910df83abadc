"""Weights of 4 bits and fewer in the native kernel: packed in memory, and to the bit what int8 weights give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from q8core.arrays import Array
from q8core.engines import TokenBatch, build_engine
from q8core.engines.choice.int8_kernels import accumulate
from q8core.engines.choice.random_weights import RandomInt8
from q8core.engines.loaders import native
from q8core.engines.loaders.native_linear import NativeLinear
from q8core.engines.tensors.site_tensors import LinearTensors, TableTensors
from q8core.errors import EngineError
from q8core.native import variants
from q8core.quant import preset
from q8core.quant.codes import Codebook
from tests.engines.conftest import EACH_VARIANT, plan_for

pytestmark = pytest.mark.usefixtures("every_variant")

Range = tuple[int, int]

GRIDS: dict[str, tuple[Codebook, bool]] = {
    **{f"{bits} bits": (Codebook.of(bits, "symmetric"), False) for bits in (4, 3, 2, 1)},
    **{f"{bits} bits and zero points": (Codebook.of(bits, "asymmetric"), True) for bits in (4, 3, 2, 1)},
    "any 16 levels": (Codebook(np.array([*range(-127, 128, 18), 1], np.int8)), False),
    "four levels of a split weight": (Codebook(np.array([-126, -26, 26, 126], np.int8)), False),
    "16 levels up to 16": (Codebook(np.array([*range(-16, 16, 2)], np.int8)), False),
}
EACH_GRID = pytest.mark.parametrize("grid", GRIDS)


def book_of(grid: str, rows: int, generator: np.random.Generator) -> Codebook:
    """The grid's codebook, with zero points at random and at both ends."""
    book, has_points = GRIDS[grid]
    if not has_points:
        return book
    most = int(book.levels.max())
    points = generator.integers(0, most + 1, rows)
    points[:2] = (0, most)[:rows]
    return Codebook(book.levels, points.astype(np.int8))


def levels_of(book: Codebook, codes: Array) -> Array:
    """The integers that codes (rows, columns) stand for, as int64."""
    found = book.levels.astype(np.int64)[codes]
    return found if book.zero_points is None else found - book.zero_points[:, None]


@EACH_VARIANT
@EACH_GRID
@pytest.mark.parametrize("zero_point", [0, 128, 254])
def test_sums_equal_int64_sums(variant: str, grid: str, zero_point: int) -> None:
    """Over whole blocks of 64 inputs, which one bit needs; 31 rows leave a tile half empty, and 40 outputs a panel."""
    generator = np.random.default_rng(zero_point)
    book = book_of(grid, 40, generator)
    weight = levels_of(book, generator.integers(0, len(book.levels), (40, 640)))
    x = generator.integers(-zero_point, 256 - zero_point, (31, 640))
    assert np.array_equal(accumulate(variant, x, weight, zero_point, book), x @ weight.T)


@EACH_VARIANT
@EACH_GRID
@pytest.mark.parametrize("size", [3072, 4096])
@pytest.mark.parametrize("zero_point", [0, 128, 254])
def test_the_largest_sums_do_not_wrap(variant: str, grid: str, size: int, zero_point: int) -> None:
    """All activations at 255 or at 0, all weights at the lowest or the highest level, and at both in turns."""
    generator = np.random.default_rng(0)
    book = book_of(grid, 6, generator)
    low, high = int(book.levels.argmin()), int(book.levels.argmax())
    codes = np.full((6, size), low)
    codes[1], codes[3], codes[4, ::2], codes[5, 1::2] = high, high, high, high
    weight = levels_of(book, codes)
    x = np.zeros((3, size), np.int64)
    x[0], x[2, ::2] = 255, 255
    x -= zero_point
    assert np.array_equal(accumulate(variant, x, weight, zero_point, book), x @ weight.T)


@settings(max_examples=40, deadline=None)
@given(
    grid=st.sampled_from([name for name, (book, _) in GRIDS.items() if 0 in book.levels]),
    rows=st.integers(1, 40),
    out=st.integers(2, 70),
    size=st.integers(1, 200),
    seed=st.integers(0, 99),
)
def test_any_size_is_padded_without_a_trace(grid: str, rows: int, out: int, size: int, seed: int) -> None:
    """Padded activations are what they are: their weight is 0, which is seldom the code 0."""
    generator = np.random.default_rng(seed)
    book = book_of(grid, out, generator)
    weight = levels_of(book, generator.integers(0, len(book.levels), (out, size)))
    x = generator.integers(-128, 128, (rows, size))
    for variant in variants():
        assert np.array_equal(accumulate(variant, x, weight, 128, book), x @ weight.T)


def in_memory(packed: NativeLinear, columns: int) -> Array:
    """The integers of a packed weight, from the definition of its blocks."""
    bits, rows = packed.view.bits, len(packed.weight)
    assert packed.codes is not None
    blocks = packed.weight.reshape(rows // 16, -1, 16 * bits // 8, 16, 4)  # 16 outputs, 64 inputs, row, output, input
    lines = np.stack([blocks >> bits * place & 2**bits - 1 for place in range(8 // bits)], axis=3)
    codes = lines.reshape(rows // 16, -1, 16, 16, 4).transpose(0, 3, 1, 2, 4).reshape(rows, -1)
    found = packed.codes.levels[codes].astype(np.int64)
    if packed.codes.zero_points is not None:
        found -= packed.codes.zero_points[:, None]
    assert not found[: packed.view.n, columns:].any()
    return found[: packed.view.n, :columns]


def linear(weight: Array, book: Codebook | None) -> LinearTensors[Array]:
    out, one = len(weight), np.ones(1, np.float32)
    return LinearTensors(weight.astype(np.int8), np.zeros(out, np.int32), one, one, codebook=book)


@EACH_GRID
@pytest.mark.parametrize(("out", "columns"), [(16, 64), (40, 192), (33, 100), (70, 1)])
def test_packed_codes_are_those_of_the_integers(grid: str, out: int, columns: int) -> None:
    generator = np.random.default_rng(out)
    book = book_of(grid, out, generator)
    weight = levels_of(book, generator.integers(0, len(book.levels), (out, columns)))
    if columns % 64 and 0 not in book.levels:
        with pytest.raises(EngineError, match=rf"multiple of 64 .* no code; found {columns} inputs"):
            NativeLinear.pack(linear(weight, book), variants()["portable"])
        return
    packed = NativeLinear.pack(linear(weight, book), variants()["portable"])
    assert np.array_equal(in_memory(packed, columns), weight)
    assert packed.view.largest == np.abs(weight).max()
    bits = 4 if book.bits == 3 else book.bits
    assert packed.weight.nbytes == -(-out // 32) * 32 * -(-columns // 64) * 64 * bits // 8


def test_a_weight_without_a_code_is_refused() -> None:
    weight = np.zeros((16, 64), np.int64)
    weight[3, 5] = 8
    with pytest.raises(EngineError, match="a weight is none of the levels"):
        NativeLinear.pack(linear(weight, Codebook.of(4, "symmetric")), variants()["portable"])


class Few(Mapping[str, Array]):
    """Random int8 tensors whose weights are levels of a codebook, zero points taken off."""

    def __init__(self, plan: Any, grid: str) -> None:
        self._tensors, self._grid, self.books = RandomInt8(plan), grid, dict[str, Codebook]()

    def __getitem__(self, name: str) -> Array:
        found = self._tensors[name]
        if name.endswith("weight_scale"):
            return found * 4  # the integers are smaller
        if not name.endswith(".weight") or found.dtype != np.int8:
            return found
        self.books.setdefault(name, book_of(self._grid, len(found), np.random.default_rng(len(found))))
        book = self.books[name]
        return levels_of(book, found.view(np.uint8) % len(book.levels)).astype(np.int8)

    def __iter__(self) -> Any:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def with_codes(monkeypatch: pytest.MonkeyPatch, tensors: Few) -> None:
    """Let the native loader find codes where the tensors hold int8."""
    take_linear, take_table = native.take_linear, native.take_table

    def linear_with_codes(source: Any, plan: Any) -> LinearTensors[Array]:
        found = take_linear(source, plan)
        return replace(found, codebook=tensors.books[f"{plan.path}.weight"])

    def table_with_codes(source: Any, plan: Any) -> TableTensors:
        found = take_table(source, plan)
        book = tensors.books.get(f"{plan.path}.weight")
        return found if book is None else replace(found, stored=book.encode(found.stored), codebook=book)

    monkeypatch.setattr(native, "take_linear", linear_with_codes)
    monkeypatch.setattr(native, "take_table", table_with_codes)


SIZES = {"vocab_size": 50, "num_hidden_layers": 2, "max_position_embeddings": 70}
LARGE = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 192}
ODD = {"hidden_size": 54, "num_attention_heads": 6, "intermediate_size": 75}


@EACH_VARIANT
@pytest.mark.parametrize(("grid", "sizes"), [(grid, LARGE) for grid in GRIDS] + [("4 bits and zero points", ODD)])
@pytest.mark.parametrize("scheme", ["q8bert-attention", "dynamic"])
def test_a_model_of_codes_gives_the_bits_of_the_same_model_in_int8(
    variant: str, grid: str, sizes: dict[str, int], scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables too, in rows that end within a byte; with one or three threads."""
    plan = plan_for("classify", scheme, **SIZES, **sizes)
    tensors = Few(plan, grid)
    ids = np.arange(99) * 7 % 50
    batch = TokenBatch(ids, ids % 2, (5, 33, 1, 60))
    source = native.TensorSource(tensors)
    expected = native.load_native(plan, source, "portable").compute(batch, 1)[0]
    assert (np.ptp(expected, axis=0) > 0).all()
    with_codes(monkeypatch, tensors)
    model = native.load_native(plan, native.TensorSource(tensors), variant)
    assert model.packed.view.words.bits == tensors.books["word_embeddings.weight"].bits
    for threads in (1, 3):
        assert np.array_equal(model.compute(batch, threads)[0], expected)


@pytest.mark.parametrize(("bits", "stored"), [(4, 4), (3, 4), (2, 2)])
def test_what_is_resident_and_in_the_cache_file_is_packed(bits: int, stored: int, empty_cache: Path) -> None:
    """Linear layers in blocks, of 4 bits for 3; tables as in the checkpoint."""
    base = preset("q8bert")
    slots = {
        slot: replace(each, weight=replace(each.weight, bits=bits)) if each.weight else each
        for slot, each in base.slots.items()
    }
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512}
    plan = plan_for("classify", replace(base, slots=slots), vocab_size=1000, num_hidden_layers=2, **sizes)
    linears = 2 * (4 * 128 * 128 + 2 * 128 * 512) + 128 * 128 + 32 * 128  # the two labels are padded to 32
    expected = linears * stored // 8 + (1000 + 512) * 128 * bits // 8 + 4 * 2 * 128
    ids = np.arange(60)
    batch = TokenBatch(ids, ids % 2, (7, 1, 52))
    private, first, second = (build_engine(plan, RandomInt8(plan), "native", sha256=sha) for sha in (None, "a", "a"))
    for engine in (private, first, second):
        weights = engine.memory().weights - sum(each.nbytes for each in engine.model.packed.tensors if is_comp(each))  # type: ignore[attr-defined]
        assert weights == expected
        assert np.array_equal(engine.infer(batch), private.infer(batch))
    (file,) = empty_cache.glob("*.packed")
    assert expected < file.stat().st_size < expected + 160_000  # scales, biases, and a description


def is_comp(array: Array) -> bool:
    return array.ndim == 2 and array.dtype == np.int32
