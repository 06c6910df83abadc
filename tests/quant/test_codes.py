"""Integers of few bits in bytes: against Python's integers, digit by digit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from q8core.quant.codes import decode, encode, stored_bits, stored_shape

BITS = range(2, 9)
WIDTHS = {8: 8, 7: 8, 6: 8, 5: 8, 4: 4, 3: 4, 2: 2}


@st.composite
def weights(draw: st.DrawFn) -> tuple[int, NDArray[np.int8]]:
    """A width, and a matrix of the integers of its symmetric grid, often with an odd number of columns."""
    bits, rows, columns = draw(st.sampled_from(BITS)), draw(st.integers(1, 5)), draw(st.integers(1, 19))
    largest = 2 ** (bits - 1) - 1
    row = st.lists(st.integers(-largest, largest), min_size=columns, max_size=columns)
    return bits, np.array(draw(st.lists(row, min_size=rows, max_size=rows)), np.int8)


def by_hand(row: list[int], width: int) -> list[int]:
    """The bytes of a row: each integer as two's complement, the first in the lowest bits."""
    whole = sum((value % 2**width) << (width * place) for place, value in enumerate(row))
    return list(whole.to_bytes(-(-len(row) * width // 8), "little"))


@given(weights())
def test_every_integer_survives_a_round_trip(case: tuple[int, NDArray[np.int8]]) -> None:
    bits, weight = case
    codes = encode(weight, bits)
    assert codes.shape == stored_shape(weight.shape, bits)
    assert codes.dtype == (np.int8 if bits > 4 else np.uint8)
    found = decode(codes, bits, weight.shape[1])
    assert found.dtype == np.int8
    assert np.array_equal(found, weight)
    assert codes.flags.c_contiguous
    assert found.flags.c_contiguous


@given(weights())
def test_bytes_are_those_of_pythons_integers(case: tuple[int, NDArray[np.int8]]) -> None:
    bits, weight = case
    expected = [by_hand(row, WIDTHS[bits]) for row in weight.tolist()]
    assert encode(weight, bits).view(np.uint8).tolist() == expected


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5, 7, 8, 383, 384])
@pytest.mark.parametrize("bits", BITS)
def test_a_row_takes_whole_bytes(bits: int, columns: int) -> None:
    assert stored_bits(bits) == WIDTHS[bits]
    assert stored_shape((6, columns), bits) == (6, (columns * WIDTHS[bits] + 7) // 8)


@pytest.mark.parametrize("bits", BITS)
def test_all_values_in_all_places(bits: int) -> None:
    """Also the one that a symmetric grid leaves out: a file of another program may hold it."""
    values = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=np.int8)
    weight = np.stack([np.roll(values, shift) for shift in range(4)])
    assert np.array_equal(decode(encode(weight, bits), bits, len(values)), weight)


def test_an_example_by_hand() -> None:
    weight = np.array([[1, -1, 7, -7, 3]], np.int8)
    assert encode(weight, 4).tolist() == [[0xF1, 0x97, 0x03]]
    weight = np.array([[1, -1, 0, 1, -1]], np.int8)
    assert encode(weight, 2).tolist() == [[0b01_00_11_01, 0b11]]


def test_the_fill_of_a_last_byte_is_zero_and_not_read() -> None:
    for bits, columns in ((4, 3), (3, 5), (2, 5), (2, 6), (2, 7)):
        weight = np.full((2, columns), -1, np.int8)
        codes = encode(weight, bits)
        used = columns * WIDTHS[bits] % 8
        assert ((codes[:, -1] >> used) == 0).all()
        codes[:, -1] |= (0xFF << used) % 256
        assert np.array_equal(decode(codes, bits, columns), weight)


def test_matrices_that_are_not_in_order_are_stored_in_order() -> None:
    for bits in BITS:
        weight = np.random.default_rng(bits).integers(-1, 2, (7, 5), np.int8)
        assert np.array_equal(decode(encode(weight.T, bits), bits, 7), weight.T)


def test_inputs_are_left_alone() -> None:
    weight = np.array([[1, -1, 0]], np.int8)
    codes = encode(weight, 2)
    before = codes.copy()
    decode(codes, 2, 3).fill(0)
    assert np.array_equal(codes, before)
    assert weight.tolist() == [[1, -1, 0]]
