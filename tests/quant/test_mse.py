"""Steps with the least squared error, against a search in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from q8core.errors import CalibrationError
from q8core.quant.rules.mse import mse_scale, mse_turn

LARGEST = (1, 3, 7, 127)


def weights(seed: int) -> Tensor:
    """Rows as in trained models: normal, with long tails, with one outlier, with zeros, of any size."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(6, 96, generator=generator)
    rows[1] = rows[1] ** 3
    rows[2, 5] = 30
    rows[3, 10:] = 0
    rows[4] *= 1e-4
    rows[5] = rows[5].abs()
    return rows


def errors(weight: Tensor, scale: Tensor, largest: int) -> np.ndarray:
    w, s = weight.double().numpy(), scale.double().numpy()[:, None]
    return ((np.clip(np.rint(w / s), -largest, largest) * s - w) ** 2).sum(axis=1)


@settings(deadline=None)
@given(seed=st.integers(0, 200), largest=st.sampled_from(LARGEST))
def test_never_worse_than_the_largest_magnitude(seed: int, largest: int) -> None:
    weight = weights(seed)
    found = errors(weight, mse_scale(weight, largest), largest)
    assert (found <= errors(weight, weight.abs().amax(dim=1) / largest, largest) * (1 + 1e-5)).all()


@pytest.mark.parametrize("largest", LARGEST)
def test_nearly_the_best_of_a_fine_search(largest: int) -> None:
    weight = torch.cat([weights(seed) for seed in range(20)])
    found, top = errors(weight, mse_scale(weight, largest), largest), weight.abs().amax(dim=1) / largest
    best = np.min([errors(weight, top * 0.985**power, largest) for power in range(300)], axis=0)
    kinds = found.reshape(20, -1).sum(axis=0) / best.reshape(20, -1).sum(axis=0)
    assert kinds.max() <= 1.1  # a row of ten values may fit a grid by chance
    assert np.delete(kinds, 3).max() <= 1.02


def test_closed_forms() -> None:
    on_a_grid = 0.25 * torch.tensor([[-7.0, 3.0, 0.0, 7.0, 1.0], [1.0, -1.0, 0.0, 7.0, 2.0]])
    torch.testing.assert_close(mse_scale(on_a_grid, 7), torch.tensor([0.25, 0.25]))
    # of two magnitudes, both are kept: the step is their mean
    torch.testing.assert_close(mse_scale(torch.tensor([[1.0, -2.0, 2.0, 1.0]]), 1), torch.tensor([1.5]))
    assert mse_scale(torch.zeros(2, 3), 7).tolist() == [1.0, 1.0]


def test_a_turn_takes_the_best_step_for_its_integers() -> None:
    weight, before = torch.tensor([[0.9, -2.2, 3.1], [0.0, 0.0, 0.0]]), torch.tensor([1.0, 1.0])
    found = mse_turn(weight, before, 3)
    assert found[0] == pytest.approx((0.9 + 4.4 + 9.3) / (1 + 4 + 9))
    assert found[1] == 1.0


def test_one_row_or_many_give_the_same_bits() -> None:
    weight = torch.cat([weights(seed) for seed in range(50)])
    together = mse_scale(weight, 7)
    assert torch.equal(torch.cat([mse_scale(row.unsqueeze(0), 7) for row in weight]), together)
    assert torch.equal(mse_scale(weight[7:130], 7), together[7:130])


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(CalibrationError, match="must be finite"):
        mse_scale(torch.tensor([[1.0, torch.nan]]), 7)
