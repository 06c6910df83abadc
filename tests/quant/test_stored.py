"""The arithmetic on stored integers in NumPy, bit for bit that of training in torch."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from q8core.quant.ops import arithmetic, products, stored

SCALES = st.lists(st.floats(2.0**-60, 2.0**60, width=32), min_size=1, max_size=20)
BIASES = st.lists(st.integers(-stored.BIAS_MAX, stored.BIAS_MAX), min_size=1, max_size=20)
INPUT_SCALES = st.floats(2.0**-60, 2.0**60, width=32)


def same(found: object, expected: torch.Tensor) -> bool:
    array = np.asarray(found)
    return array.dtype == np.float32 and array.tobytes() == expected.numpy().tobytes()


@given(INPUT_SCALES, SCALES, BIASES)
def test_factors_and_biases_are_those_of_training(scale_x: float, scale_w: list[float], bias: list[int]) -> None:
    size = min(len(scale_w), len(bias))
    arrays = np.array([scale_x], np.float32), np.array(scale_w[:size], np.float32), np.array(bias[:size], np.int32)
    x, w, b = (torch.from_numpy(each) for each in arrays)
    assert same(stored.rescale_factor(arrays[0], arrays[1]), arithmetic.rescale_factor(x, w))
    assert same(stored.rescale_factor(arrays[0], arrays[1][:1]), arithmetic.rescale_factor(x, w[:1]))
    assert same(stored.dequantize_bias(arrays[2], arrays[0], arrays[1]), arithmetic.dequantize_bias(b, x, w))
    assert same(stored.dequantize_bias(arrays[2], arrays[0], arrays[1][:1]), arithmetic.dequantize_bias(b, x, w[:1]))


@given(SCALES)
def test_weights_are_those_of_training(scale: list[float]) -> None:
    weight, steps = np.arange(-127, 128, dtype=np.int8), np.array(scale, np.float32)[:, None]
    rows = np.tile(weight, (len(scale), 1))
    expected = arithmetic.dequantize(torch.from_numpy(rows), torch.from_numpy(steps))
    assert same(stored.dequantize(rows, steps), expected)
    assert np.array_equal(rows, np.tile(weight, (len(scale), 1)))


@given(INPUT_SCALES, INPUT_SCALES)
def test_the_score_factor_is_that_of_training(scale_q: float, scale_k: float) -> None:
    expected = products.score_factor(64, torch.tensor([scale_q]), torch.tensor([scale_k]))
    assert stored.score_factor(64, scale_q, scale_k) == expected
