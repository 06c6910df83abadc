"""Integers of few bits in bytes: against Python's integers, digit by digit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from q8core.quant.codes import Codebook, stored_shape
from q8core.quant.quantizer import Grid

BITS = (1, 2, 3, 4)
GRIDS: tuple[Grid, ...] = ("symmetric", "asymmetric")


@st.composite
def weights(draw: st.DrawFn) -> tuple[Codebook, NDArray[np.int8]]:
    """A codebook, perhaps with zero points, and a matrix of its integers, often with an odd number of columns."""
    bits, grid = draw(st.sampled_from(BITS)), draw(st.sampled_from(GRIDS))
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 19))
    book = Codebook.of(bits, grid)
    row = st.lists(st.sampled_from(book.levels.tolist()), min_size=columns, max_size=columns)
    weight = np.array(draw(st.lists(row, min_size=rows, max_size=rows)), np.int8)
    if grid == "symmetric":
        return book, weight
    numbers = st.lists(st.integers(0, 2**bits - 1), min_size=rows, max_size=rows)
    zero_points = np.array(draw(numbers), np.int8)
    return Codebook(book.levels, zero_points), weight - zero_points[:, None]


def by_hand(row: list[int], book: Codebook, zero_point: int) -> list[int]:
    """The bytes of a row: the place of each integer among the levels, the first in the lowest bits."""
    codes = [book.levels.tolist().index(value + zero_point) for value in row]
    whole = sum(code << (book.bits * place) for place, code in enumerate(codes))
    return list(whole.to_bytes(-(-len(row) * book.bits // 8), "little"))


@given(weights())
def test_every_integer_survives_a_round_trip(case: tuple[Codebook, NDArray[np.int8]]) -> None:
    book, weight = case
    codes = book.encode(weight)
    assert codes.shape == stored_shape(weight.shape, book.bits)
    assert codes.dtype == np.uint8
    found = book.decode(codes, weight.shape[1])
    assert found.dtype == np.int8
    assert np.array_equal(found, weight)
    assert codes.flags.c_contiguous
    assert found.flags.c_contiguous


@given(weights())
def test_bytes_are_those_of_pythons_integers(case: tuple[Codebook, NDArray[np.int8]]) -> None:
    book, weight = case
    zeros = [0] * len(weight) if book.zero_points is None else book.zero_points.tolist()
    expected = [by_hand(row, book, zero) for row, zero in zip(weight.tolist(), zeros, strict=True)]
    assert book.encode(weight).tolist() == expected


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5, 7, 8, 383, 384])
@pytest.mark.parametrize("bits", range(1, 9))
def test_a_row_takes_whole_bytes(bits: int, columns: int) -> None:
    width = bits if bits <= 4 else 8
    assert stored_shape((6, columns), bits) == (6, (columns * width + 7) // 8)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", BITS)
def test_all_codes_in_all_places(bits: int, grid: Grid) -> None:
    """Also the one that a symmetric grid leaves out: a file of another program may hold it."""
    book = Codebook.of(bits, grid)
    weight = np.stack([np.roll(book.levels, shift) for shift in range(8)])
    assert np.array_equal(book.decode(book.encode(weight), 2**bits), weight)


def test_levels_by_hand() -> None:
    assert Codebook.of(1, "symmetric").levels.tolist() == [-1, 1]
    assert Codebook.of(2, "symmetric").levels.tolist() == [-2, -1, 0, 1]
    assert Codebook.of(1, "asymmetric").levels.tolist() == [0, 1]
    assert Codebook.of(3, "asymmetric").levels.tolist() == list(range(8))
    assert [Codebook.of(bits, "symmetric").bits for bits in BITS] == list(BITS)


def test_an_example_by_hand() -> None:
    four, two, one = (Codebook.of(bits, "symmetric") for bits in (4, 2, 1))
    assert four.encode(np.array([[1, -1, 7, -7, 3]], np.int8)).tolist() == [[0x79, 0x1F, 0x0B]]
    assert two.encode(np.array([[1, -1, 0, 1, -1]], np.int8)).tolist() == [[0b11_10_01_11, 0b01]]
    assert one.encode(np.array([[1, -1, 1, 1]], np.int8)).tolist() == [[0b1101]]
    three = Codebook.of(3, "asymmetric")
    assert three.encode(np.array([[1, 2, 7, 0, 4]], np.int8)).tolist() == [[0b11_010_001, 0b0_100_000_1]]


def test_the_fill_of_a_last_byte_is_zero_and_not_read() -> None:
    for bits, columns in ((4, 3), (3, 5), (2, 5), (2, 6), (2, 7), (1, 9)):
        book = Codebook.of(bits, "symmetric")
        weight = np.full((2, columns), -1, np.int8)
        codes = book.encode(weight)
        used = columns * bits % 8
        assert ((codes[:, -1] >> used) == 0).all()
        codes[:, -1] |= (0xFF << used) % 256
        assert np.array_equal(book.decode(codes, columns), weight)


def test_matrices_that_are_not_in_order_are_stored_in_order() -> None:
    for bits in BITS:
        book = Codebook.of(bits, "symmetric")
        weight = book.levels[np.random.default_rng(bits).integers(0, 2**bits, (7, 5))]
        assert np.array_equal(book.decode(book.encode(weight.T), 7), weight.T)


def test_inputs_are_left_alone() -> None:
    book, weight = Codebook.of(2, "symmetric"), np.array([[1, -1, 0]], np.int8)
    codes = book.encode(weight)
    before = codes.copy()
    book.decode(codes, 3).fill(0)
    assert np.array_equal(codes, before)
    assert weight.tolist() == [[1, -1, 0]]
