"""The order of a layer's inputs in which the AVX2 variant multiplies them: what it promises, and sums at its limits."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from q8core.engines.choice.int8_kernels import accumulate
from q8core.engines.loaders.native import NativeLinear
from q8core.engines.tensors.site_tensors import LinearTensors
from q8core.native import variants

GROUP, PANEL, SLICE = 16, 32, 4096
TOO_LARGE = 64


def normal_weights(out: int, size: int) -> NDArray[np.int64]:
    values = np.random.default_rng(size).normal(0, 41, (out, size))
    return np.clip(np.rint(values), -127, 127).astype(np.int64)


def pack(weight: NDArray[np.int64]) -> NativeLinear:
    if "avx2" not in variants():
        pytest.skip("this CPU has no AVX2")
    one = np.ones(1, np.float32)
    tensors = LinearTensors(weight.astype(np.int8), np.zeros(len(weight), np.int32), one, input_scale=one)
    return NativeLinear.pack(tensors, variants()["avx2"])


def orders_of(packed: NativeLinear, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the order within each group (panels, groups, 16), and which group of its slice it is (panels, groups)."""
    assert packed.order is not None
    panels = packed.order.astype(np.int64).reshape(packed.view.np // PANEL, size + size // GROUP)
    return panels[:, :size].reshape(len(panels), -1, GROUP), panels[:, size:]


@pytest.mark.parametrize("size", [384, 768, SLICE + 64])
def test_neighbours_fit_into_16_bits_unless_their_group_says_that_they_do_not(size: int) -> None:
    weight = normal_weights(2 * PANEL, size)
    orders, places = orders_of(pack(weight), size)
    large = orders[:, :, 0] & TOO_LARGE > 0
    assert 0 < large.mean() < 0.3  # both kinds are there
    slices = range(0, size // GROUP, SLICE // GROUP)
    for panel, (order, place) in enumerate(zip(orders % TOO_LARGE, places, strict=True)):
        rows = weight[panel * PANEL : (panel + 1) * PANEL]
        for first in slices:
            ours = place[first : first + SLICE // GROUP]
            assert sorted(ours) == list(range(len(ours)))
            foreseen = large[panel, first : first + SLICE // GROUP]
            assert np.array_equal(foreseen, np.sort(foreseen))
        for group, inner in enumerate(order):
            assert sorted(inner) == list(range(GROUP))
            begin = group // (SLICE // GROUP) * SLICE + place[group] * GROUP
            pairs = rows[:, begin + inner].reshape(PANEL, -1, 2).sum(2)
            assert large[panel, group] or np.abs(pairs).max() <= 128


@pytest.mark.parametrize("size", [64, 1000, 3072, SLICE, SLICE + 64, 2 * SLICE + 100])
@pytest.mark.parametrize("zero_point", [None, 0, 100])
@pytest.mark.parametrize("rows", [1, 5, 33])
def test_sums_are_exact_where_weights_just_fit_and_where_they_just_do_not(
    size: int, zero_point: int | None, rows: int
) -> None:
    generator = np.random.default_rng(size)
    limits = np.array([1, 2, 63, 64, 65, 126, 127])
    low, high = (-127, 127) if zero_point is None else (-zero_point, 255 - zero_point)
    x = np.where(generator.random((rows, size)) < 0.5, low, high)
    x[0] = high
    # Of every two groups one has weights that fit in any order but for a few columns of one sign: the sums grow.
    weight = generator.choice(limits, (70, size)) * np.where(np.arange(70) % 3 == 0, 1, -1)[:, None]
    fitting = np.arange(size) // GROUP % 2 == 0
    weight[:, fitting] = np.sign(weight[:, fitting]) * 64
    for variant in variants():
        assert np.array_equal(accumulate(variant, x, weight, zero_point), x @ weight.T)


@pytest.mark.parametrize(("one", "other"), [(64, 64), (64, 65), (127, 1), (127, 2), (-64, -65), (-127, 127)])
def test_pairs_at_the_limit_are_told_apart(one: int, other: int) -> None:
    weight = np.tile([one, other], (PANEL, 32))
    x = np.full((4, 64), 127)
    for variant in variants():
        assert np.array_equal(accumulate(variant, x, weight), x @ weight.T)
