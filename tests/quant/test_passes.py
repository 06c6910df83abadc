"""The native passes against torch's operators, bit for bit, on every variant of the library that runs here."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from q8core.native import load_library, variants
from q8core.quant.ops import passes
from q8core.quant.ops.arithmetic import quantize
from q8core.quant.ops.passes import column_sums, on_grid, rescale_, row_magnitudes, row_sides, scaled, to_grid

SHAPES = [(3, 5), (1, 1), (2, 16), (4, 7, 33), (9, 384), (70, 1536)]
"""Lanes filled in part, exactly, several times; more elements than one thread takes, and than torch takes at once."""
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=list(variants()), autouse=True)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(passes, "_library", lambda: (load_library(), variants()[request.param]))
    return request.param


@pytest.fixture
def two_threads() -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(3).to(dtype)


def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_library", lambda: None)


def same(ours: Tensor, theirs: Tensor) -> bool:
    return (
        ours.dtype == theirs.dtype
        and ours.shape == theirs.shape
        and torch.equal(ours.nan_to_num(), theirs.nan_to_num())
    )


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_magnitudes_of_rows(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = random(*shape, dtype=dtype)
    assert same(row_magnitudes(x), x.float().abs().amax(-1))


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", [0, 20, -20])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sides_of_rows(shape: tuple[int, ...], shift: float, dtype: torch.dtype) -> None:
    x = random(*shape, dtype=dtype) + shift
    low, high = row_sides(x)
    assert same(low, x.float().neg().amax(-1).relu())
    assert same(high, x.float().amax(-1).relu())


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("result", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_grids(shape: tuple[int, ...], dtype: torch.dtype, result: torch.dtype, per_row: bool) -> None:
    x = random(*shape, dtype=dtype)
    scale = random(*shape[:-1], 1, seed=1).abs() / 30 + 1e-3 if per_row else torch.tensor([0.031])
    steps = quantize(x, scale)
    assert same(to_grid(x, scale, result), steps.to(result))
    assert same(on_grid(x, scale), (steps * scale).to(dtype))
    assert same(scaled(x, scale, result), (x.float() * scale).to(result))


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("zero_point", [0, 2, 128, 254])
@pytest.mark.parametrize("result", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_asymmetric_grids(shape: tuple[int, ...], dtype: torch.dtype, result: torch.dtype, zero_point: int) -> None:
    x, scale = random(*shape, dtype=dtype), torch.tensor([0.031])
    assert same(to_grid(x, scale, result, zero_point), quantize(x, scale, zero_point).to(result))


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rescaling(shape: tuple[int, ...], dtype: torch.dtype, per_column: bool) -> None:
    acc = random(*shape, dtype=dtype).mul_(1000)
    r, bias = random(shape[-1] if per_column else 1, seed=1), random(shape[-1], seed=2)
    expected = (acc.float() * r + bias).to(dtype)
    rescale_(acc, r, bias)
    assert same(acc, expected)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (7, 64), (300, 90), (33, 1536)], ids=str)
def test_sums_of_columns(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Against float64; float32 sums of n terms are off by n roundings of their size at most."""
    x = random(*shape, dtype=dtype)
    sums, exact = column_sums(x), x.double().sum(0)
    assert sums.dtype == torch.float32
    assert bool(((sums - exact).abs() <= shape[0] * 2.0**-24 * x.double().abs().sum(0)).all())


# the fixture is the same for all examples
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    st.floats(width=32, min_value=2.0**-100, max_value=2.0**100),
)
def test_any_finite_numbers_and_any_scale(values: list[float], scale_x: float) -> None:
    """Ties, huge and subnormal numbers: rounding to steps and to bfloat16 is torch's."""
    x, scale = torch.tensor(values), torch.tensor([scale_x])
    assert same(to_grid(x, scale, torch.bfloat16), quantize(x, scale).to(torch.bfloat16))
    assert same(scaled(x, torch.ones(1), torch.bfloat16), x.to(torch.bfloat16))
    assert same(row_magnitudes(x), x.abs().amax(-1))


def test_halves_are_rounded_to_even() -> None:
    x = torch.arange(-130, 131) * 0.5
    assert same(to_grid(x, torch.ones(1), torch.float32), x.round())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("-nan"), float("inf"), float("-inf")])
def test_broken_numbers_are_not_hidden(dtype: torch.dtype, bad: float) -> None:
    x = random(3, 21, dtype=dtype)
    x[1, 20] = bad
    kept = [
        row_magnitudes(x),
        to_grid(x, torch.ones(1), dtype),
        on_grid(x, torch.ones(1)),
        scaled(x, torch.ones(1), dtype),
    ]
    if bad == bad:
        assert kept[0].tolist() == [float(x[0].abs().max()), float("inf"), float(x[2].abs().max())]
        assert kept[1][1, 20] == kept[2][1, 20] == (127 if bad > 0 else -127)  # clamped, as ever
        assert kept[3][1, 20] == bad
    else:
        assert all(int(found.isnan().sum()) == 1 for found in kept)
        assert bool(kept[0][1].isnan())
        sides = torch.stack(row_sides(x))
        assert sides.isnan().any(0).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torch_alone_gives_the_same_bits(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, scale, rows = random(200, 1000, dtype=dtype), torch.tensor([0.05]), random(200, 1, seed=1).abs() + 0.01

    def run() -> list[Tensor]:
        acc = x.clone()
        rescale_(acc, scale, random(1000, seed=2))
        found = [row_magnitudes(x), *row_sides(x), acc, on_grid(x, scale), on_grid(x, rows)]
        found += [to_grid(x, scale, t, 100) for t in DTYPES]
        return found + [each(x, s, t) for each in (to_grid, scaled) for s in (scale, rows) for t in DTYPES]

    native = run()
    without_library(monkeypatch)
    assert all(same(ours, theirs) for ours, theirs in zip(native, run(), strict=True))
    torch.testing.assert_close(column_sums(x), x.double().sum(0).float(), rtol=1e-4, atol=1e-3)


def test_tensors_that_are_not_in_order_are_computed_by_torch() -> None:
    x = random(6, 40).t()
    scale = torch.tensor([0.05])
    assert same(to_grid(x, scale, torch.bfloat16), quantize(x, scale).to(torch.bfloat16))
    assert same(row_magnitudes(x), x.abs().amax(-1))


def test_scales_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match="2 scales for the rows"):
        to_grid(random(3, 4), torch.ones(2, 1), torch.float32)
