"""One training step: forward, backward, clipping, update."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from q8core.training.config import TrainConfig
from q8core.training.processes import ALONE, Processes


def training_step(
    loss_of: Callable[[], Tensor],
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    processes: Processes = ALONE,
) -> float:
    """Make one step, together with the other processes, and return its loss.

    Args:
        loss_of: computes the loss, a scalar, of this process's share of a batch; called under autocast where
            the precision is bf16.
        optimizer: of the parameters that the loss depends on; they have no gradients before and afterwards.
        config: precision and clipping.
        processes: who takes part: gradients and losses are summed.
    """
    with torch.autocast(processes.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        loss = loss_of()
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    processes.sum_gradients(parameters)
    nn.utils.clip_grad_norm_(parameters, config.grad_clip)
    optimizer.step()
    optimizer.zero_grad()
    return processes.total(loss.item())
