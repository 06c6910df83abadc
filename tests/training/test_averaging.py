"""The average of the weights, against its formula."""

from __future__ import annotations

import torch
from torch import nn

from q8core.training.averaging import WeightAverage


def walk(model: nn.Linear, average: WeightAverage, steps: int, begin: int = 0) -> list[torch.Tensor]:
    """Move the weights as an optimizer would; return where they were."""
    seen: list[torch.Tensor] = []
    for step in range(begin, steps):
        with torch.no_grad():
            model.weight.copy_(torch.full_like(model.weight, float(step**2)))
        average.update(step)
        seen.append(model.weight.detach().clone())
    return seen


def test_the_first_steps_count_alike_and_older_ones_fade_afterwards() -> None:
    model = nn.Linear(2, 3)
    average = WeightAverage(model, 4)
    seen = walk(model, average, 4)
    torch.testing.assert_close(average.state()["weight"], torch.stack(seen).mean(0))
    expected = average.state()["weight"].clone()
    for weight in walk(model, average, 9, begin=4):
        expected = 0.75 * expected + 0.25 * weight
    torch.testing.assert_close(average.state()["weight"], expected)


def test_it_stands_in_for_the_weights_and_gives_them_back() -> None:
    model = nn.Linear(2, 3)
    average = WeightAverage(model, 3)
    seen = walk(model, average, 5)
    kept = average.state()["weight"].clone()
    with average.applied():
        assert torch.equal(model.weight, kept)
    assert torch.equal(model.weight, seen[-1])
    assert torch.equal(average.state()["weight"], kept)


def test_it_goes_on_from_a_saved_state() -> None:
    model, other = nn.Linear(2, 3), nn.Linear(2, 3)
    average, resumed = WeightAverage(model, 3), WeightAverage(other, 3)
    walk(model, average, 5)
    resumed.load({name: value.clone() for name, value in average.state().items()})
    walk(model, average, 8, begin=5)
    walk(other, resumed, 8, begin=5)
    assert torch.equal(average.state()["weight"], resumed.state()["weight"])
