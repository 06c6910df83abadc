"""One training step: forward, backward, clipping, update."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from q8core.errors import TrainingError
from q8core.training.config import TrainConfig
from q8core.training.processes import ALONE, Processes


def training_step(
    loss_of: Callable[[], Tensor],
    optimizer: torch.optim.AdamW,
    config: TrainConfig,
    processes: Processes = ALONE,
) -> float:
    """Make one step, together with the other processes, and return its loss.

    Args:
        loss_of: computes the loss, a scalar, of this process's share of a batch; called under autocast if the precision
            is bf16.
        optimizer: a fused optimizer of the parameters of the loss; they have no gradients before and afterwards.
        config: precision and clipping.
        processes: the processes over which gradients and losses are summed.

    Raises:
        TrainingError: if the loss is NaN or infinite; the parameters are unchanged.
    """
    with torch.autocast(processes.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        loss = loss_of()
    loss.backward()
    processes.sum_gradients(p for group in optimizer.param_groups for p in group["params"])
    total = processes.total(loss.item())
    if not math.isfinite(total):
        raise TrainingError(f"the loss is {total}: training diverged; try a lower --learning-rate")
    clipped_update(optimizer, config.grad_clip)
    optimizer.zero_grad()
    return total


def clipped_update(optimizer: torch.optim.AdamW, max_norm: float) -> None:
    """Update as after `clip_grad_norm_(parameters, max_norm)`, without a further pass over all gradients.

    A fused optimizer divides gradients by `grad_scale` while it reads them, which is meant for loss scaling in mixed
    precision.

    Args:
        optimizer: a fused optimizer.
        max_norm: limit of the L2 norm of all gradients together.
    """
    parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    scaling: Any = optimizer  # grad_scale is not declared: torch's loss scaler sets it on any optimizer
    # 1e-6 as in clip_grad_norm_
    scaling.grad_scale = ((norm + 1e-6) / max_norm).to(torch.float32) if norm + 1e-6 > max_norm else None
    optimizer.step()
