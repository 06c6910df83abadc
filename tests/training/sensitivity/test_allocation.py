from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from q8core.errors import InputError
from q8core.training.sensitivity.allocation import (
    BITS,
    Matrix,
    average_bits,
    by_budget,
    by_rank,
    total_cost,
    uniform,
)
from q8core.training.sensitivity.report import squared_error


def matrix(path: str, size: int, trace: float, spread: float = 1.0) -> Matrix:
    """With the errors of a uniform grid: a quarter for each further bit."""
    return Matrix(path, size, trace, {bits: spread * size * 4.0**-bits for bits in BITS})


def with_sensitive(places: tuple[int, ...], count: int = 8) -> list[Matrix]:
    return [matrix(f"m{i}", 100, 1e3 if i in places else 1.0) for i in range(count)]


MATRICES = st.lists(st.tuples(st.integers(1, 9), st.floats(-1, 100), st.floats(0.01, 10)), min_size=1, max_size=5).map(
    lambda rows: [matrix(f"m{i}", 64 * size, trace, spread) for i, (size, trace, spread) in enumerate(rows)]
)


@settings(deadline=None)
@given(MATRICES, st.floats(2, 8), st.booleans())
def test_the_budget_is_kept_to_the_bit(matrices: list[Matrix], average: float, reverse: bool) -> None:
    bits = by_budget(matrices, average, reverse=reverse)
    assert set(bits) == {one.path for one in matrices}
    assert set(bits.values()) <= set(BITS)
    assert sum(one.size * bits[one.path] for one in matrices) <= average * sum(one.size for one in matrices)


@settings(deadline=None, max_examples=50)
@given(MATRICES, st.floats(2, 8))
def test_the_greedy_choice_is_near_the_best_of_all(matrices: list[Matrix], average: float) -> None:
    """Every way to give bits is tried. Greedy may leave bits over, of which a step of one matrix is the most."""
    paths = [one.path for one in matrices]
    total = sum(one.size for one in matrices)

    def best(budget: float) -> float:
        ways = (dict(zip(paths, way, strict=True)) for way in product(BITS, repeat=len(paths)))
        fits = [way for way in ways if sum(one.size * way[one.path] for one in matrices) <= budget]
        return min((total_cost(matrices, way) for way in fits), default=float("inf"))

    found = total_cost(matrices, by_budget(matrices, average))
    assert best(average * total) <= found * (1 + 1e-9)
    largest_step = max(one.size for one in matrices) * (BITS[-1] - BITS[0])
    assert found <= best(average * total - largest_step) * (1 + 1e-9)


def test_sensitive_matrices_get_more_bits_and_reversed_fewer() -> None:
    matrices = with_sensitive((2, 5))
    bits, reverse = (by_budget(matrices, 3.0, reverse=each) for each in (False, True))
    assert {path for path, each in bits.items() if each > 3} >= {"m2", "m5"}
    assert max(reverse["m2"], reverse["m5"]) < max(reverse.values())
    assert average_bits(matrices, bits) <= 3
    even = total_cost(matrices, uniform(matrices, 3.0))
    assert total_cost(matrices, bits) < even < total_cost(matrices, reverse)


def test_a_negative_trace_is_as_sensitive_as_a_positive_one() -> None:
    matrices = [matrix("down", 10, -5.0), matrix("flat", 10, 0.1), matrix("up", 10, 5.0)]
    assert by_budget(matrices, 10 / 3) == {"down": 4, "flat": 2, "up": 4}


@pytest.mark.parametrize("average", [1.99, 8.01])
def test_impossible_budgets_are_refused(average: float) -> None:
    with pytest.raises(InputError, match=rf"--average-bits is {average}; allowed: 2 to 8"):
        by_budget(with_sensitive((1,)), average)


@pytest.mark.parametrize(
    ("average", "few", "many"), [(2.5, 2, 3), (3.0, 2, 4), (3.6, 3, 4), (5.0, 2, 8), (6.0, 4, 8), (8.0, 4, 8)]
)
def test_rank_gives_the_upper_half_the_higher_bits(average: float, few: int, many: int) -> None:
    matrices = with_sensitive(())
    layer_of = {one.path: i // 2 for i, one in enumerate(matrices)}
    omegas = [1.0, 9.0, 5.0, 2.0]
    bits = by_rank(matrices, layer_of, omegas, average, reverse=False)
    assert list(bits.values()) == [few, few, many, many, many, many, few, few]
    assert average_bits(matrices, bits) <= average
    reverse = by_rank(matrices, layer_of, omegas, average, reverse=True)
    assert list(reverse.values()) == [many, many, few, few, few, few, many, many]


def test_rank_of_an_odd_number_of_layers_stays_within_the_budget() -> None:
    matrices = with_sensitive((), 3)
    layer_of = {one.path: i for i, one in enumerate(matrices)}
    bits = by_rank(matrices, layer_of, [1.0, 3.0, 2.0], 3.0, reverse=False)
    assert list(bits.values()) == [2, 4, 2]
    with pytest.raises(InputError, match=r"--average-bits is 2\.1; allowed: 2\.33333 to 8"):
        by_rank(matrices, layer_of, [1.0, 3.0, 2.0], 2.1, reverse=False)
    with pytest.raises(InputError, match="1 layer, and rank divides layers"):
        by_rank(matrices[:1], layer_of, [1.0], 3.0, reverse=False)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_step_is_as_good_as_the_best_of_many(bits: int) -> None:
    """A search over 4,000 steps of each row, in float64; and never worse than the largest magnitude's step."""
    weight = torch.randn(6, 300, generator=torch.Generator().manual_seed(bits)) ** 3
    largest = 2 ** (bits - 1) - 1
    widest = weight.double().abs().amax(dim=1) / largest

    def errors(steps: torch.Tensor) -> torch.Tensor:
        q = (weight.double() / steps[:, None]).round().clamp(-largest, largest)
        return (weight.double() - q * steps[:, None]).square().sum(dim=1)

    best = torch.stack([errors(widest * share) for share in torch.linspace(0.02, 1.0, 4000).double()]).amin(dim=0)
    found = squared_error(weight, largest)
    assert found <= float(errors(widest).sum()) * (1 + 1e-5)
    assert found <= float(best.sum()) * 1.1


def test_rows_of_zeros_and_of_one_magnitude_have_no_error() -> None:
    weight = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.5, -0.5, 0.5, 0.5]])
    assert [squared_error(weight, 2 ** (bits - 1) - 1) for bits in BITS] == pytest.approx([0.0] * 4, abs=1e-12)
