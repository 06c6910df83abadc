from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from q8core.errors import CalibrationError, InputError
from q8core.quant.rules.ranges import Histogram, MseCollector, abs_max, create_collector, ema_update, rows_of


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_padding_does_not_count() -> None:
    x = random(2, 5, 8)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    x[0, 3], x[1, 4] = 100.0, float("nan")
    expected = x[mask == 1].abs().max()
    for kind in (mask, mask.bool(), mask.float()):
        assert abs_max(x, kind) == expected
    assert torch.equal(rows_of(x, mask), x[mask == 1])


def test_mask_of_other_rows_is_not_applied() -> None:
    """The pooler reads (batch, hidden): the mask (batch, sequence) says nothing about those rows."""
    pooled = random(5, 8)
    mask = torch.zeros(2, 5)
    assert abs_max(pooled, mask) == pooled.abs().max()
    assert torch.equal(rows_of(pooled, mask), pooled)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_bad_values_are_seen(bad: float, masked: bool) -> None:
    x = random(2, 3, 4)
    x[1, 1, 2] = bad
    assert not torch.isfinite(abs_max(x, torch.ones(2, 3) if masked else None))


@given(st.lists(st.floats(0, 100, width=32), min_size=2, max_size=40), st.floats(0, 0.9999))
def test_ema_matches_the_recurrence(observed: list[float], decay: float) -> None:
    threshold, expected = torch.zeros(()), observed[0]
    for step, value in enumerate(observed):
        threshold = ema_update(threshold, torch.tensor(value), step, decay, debias=False)
        if step:
            expected = decay * expected + (1 - decay) * value
    assert threshold.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_debiased_ema_forgets_the_first_batch() -> None:
    """With the paper's 0.9999 a short training ends on the range of its first batch."""
    ends: dict[bool, float] = {}
    for debias in (False, True):
        threshold = torch.zeros(())
        for step in range(300):
            observed = torch.tensor(10.0 if step == 0 else 1.0)
            threshold = ema_update(threshold, observed, step, 0.9999, debias)
        ends[debias] = threshold.item()
    assert ends[False] == pytest.approx(1 + 9 * 0.9999**299, rel=1e-4)
    assert ends[True] == pytest.approx(1.0, rel=1e-4)


@given(st.lists(st.floats(0, 1000, width=32), min_size=1, max_size=30), st.booleans())
def test_ema_stays_within_what_was_observed(observed: list[float], debias: bool) -> None:
    threshold = torch.zeros(())
    for step, value in enumerate(observed):
        threshold = ema_update(threshold, torch.tensor(value), step, 0.9, debias)
    slack = 1e-5 * max(observed)
    assert min(observed) - slack <= threshold.item() <= max(observed) + slack


def test_max_is_over_all_batches() -> None:
    batches = [random(7, 8, seed=seed) * (seed + 1) for seed in range(4)]
    collector = create_collector("max")
    for rows in batches:
        collector.add(rows)
    assert collector.threshold() == torch.cat(batches).abs().max()


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.0, 99.9, 100.0])
def test_percentile_matches_numpy(percentile: float) -> None:
    batches = [random(300, 20, seed=seed) * 2**seed for seed in range(3)]  # growing: the histogram must follow
    collector = create_collector("percentile", percentile)
    for rows in batches:
        collector.add(rows)
    values = torch.cat(batches).abs()
    expected = float(np.percentile(values.numpy(), percentile, method="inverted_cdf"))
    assert expected <= collector.threshold().item() <= expected + 2 * values.max().item() / (Histogram.BINS / 2)


def test_hundredth_percentile_is_the_maximum() -> None:
    rows = random(50, 8)
    collector = create_collector("percentile", 100)
    collector.add(rows)
    assert collector.threshold() == rows.abs().max()


def test_mse_threshold_is_the_best_of_its_candidates() -> None:
    rows = torch.cat([random(4000, 8), torch.tensor([[40.0] + [0.0] * 7])])  # one outlier
    collector = MseCollector()
    collector.add(rows)
    chosen = collector.threshold().item()

    def error(threshold: float) -> float:
        step = threshold / 127
        q = np.clip(np.rint(rows.double().numpy() / step), -127, 127) * step
        return float(((q - rows.double().numpy()) ** 2).sum())

    errors = {40.0 * k / 128: error(40.0 * k / 128) for k in range(1, 129)}
    assert error(chosen) <= min(errors.values()) * 1.05  # the histogram knows values to a bin
    assert error(chosen) < error(40.0)


def test_mse_of_well_spread_values_clips_nothing_much() -> None:
    rows = torch.linspace(-1, 1, 4096).reshape(64, 64)
    collector = MseCollector()
    collector.add(rows)
    assert collector.threshold().item() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("method", ["max", "percentile", "mse"])
def test_zeros_and_empty_batches(method: str) -> None:
    collector = create_collector(method)  # type: ignore[arg-type]
    collector.add(torch.zeros(0, 8))
    collector.add(torch.zeros(5, 8))
    assert collector.threshold() == 0
    collector.add(torch.tensor([[0.5, -2.0]]))
    assert 0 < collector.threshold() <= 2.0


@pytest.mark.parametrize("method", ["percentile", "mse"])
def test_histograms_refuse_bad_values(method: str) -> None:
    with pytest.raises(CalibrationError, match="infinite or NaN"):
        create_collector(method).add(torch.tensor([[1.0, float("nan")]]))  # type: ignore[arg-type]


def test_unknown_method_and_percentile() -> None:
    with pytest.raises(InputError, match="one of max, percentile, mse; found 'entropy'"):
        create_collector("entropy")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at most 100, not 101"):
        create_collector("percentile", 101)
