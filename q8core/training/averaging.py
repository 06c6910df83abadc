"""A moving average of the weights along a run, which generalizes better than the last weights.

Source: Polyak & Juditsky (1992), with exponential weights, as is usual for fine-tuning.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of a model's parameters over about the last `steps` steps.

    Args:
        model: the model whose parameters are averaged; its buffers (observed ranges) are not.
        steps: the time constant; before this many steps, all of them have the same weight.
    """

    def __init__(self, model: nn.Module, steps: float) -> None:
        self._parameters = dict(model.named_parameters())
        self._average = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._steps = max(1.0, steps)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the parameters after 0-based step `step` to the average."""
        weight = 1.0 / min(self._steps, step + 1)
        for name, average in self._average.items():
            average.lerp_(self._parameters[name], weight)

    @contextmanager
    def applied(self) -> Generator[None]:
        """Replace the parameters by the average within the context."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> dict[str, Tensor]:
        """Return the average by parameter name."""
        return self._average

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        for name, average in self._average.items():
            average.copy_(state[name])

    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, self._average[name] = self._average[name], parameter.data
