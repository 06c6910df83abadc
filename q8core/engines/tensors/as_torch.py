"""The tensors of a plan's sites as torch tensors, for the layers that torch's operators compute.

Each shares the memory of the array that it was made of.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from q8core.engines.tensors import site_tensors
from q8core.engines.tensors.source import TensorSource
from q8core.quant.plan import Plan, SitePlan

LinearTensors = site_tensors.LinearTensors[Tensor]


@dataclass(frozen=True)
class TableTensors:
    """An embedding table: rows in float32, or in int8 with a scale (1,) or (rows,), in memory that they own."""

    rows: Tensor
    scale: Tensor | None = None


def take_linear(source: TensorSource, plan: SitePlan) -> LinearTensors:
    """Take the tensors of a linear layer.

    Raises:
        CheckpointError: if one is missing, or is not what the plan says.
    """
    found = site_tensors.take_linear(source, plan)
    values: dict[str, Any] = {each.name: getattr(found, each.name) for each in fields(found)}
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            values[name] = torch.from_numpy(value)
    return LinearTensors(**values)


def take_table(source: TensorSource, plan: SitePlan, first: int = 0) -> TableTensors:
    """Take the tensors of an embedding table from its row `first` on.

    Raises:
        CheckpointError: if one is missing, or is not what the plan says.
    """
    found = site_tensors.take_table(source, plan).behind(first)
    scale = None if found.scale is None else torch.from_numpy(site_tensors.own(found.scale))
    return TableTensors(torch.from_numpy(site_tensors.own(found.rows)), scale)


def take_norm(source: TensorSource, plan: SitePlan) -> tuple[Tensor, Tensor]:
    """Take the weight and the bias of a layer norm.

    Raises:
        CheckpointError: if one is missing, or is not what the plan says.
    """
    weight, bias = site_tensors.take_norm(source, plan)
    return torch.from_numpy(weight), torch.from_numpy(bias)


def take_relative_bias(source: TensorSource, plan: Plan) -> Tensor | None:
    """Take the attention biases by the key's distance from the query, (heads, 2 * positions - 1), or None.

    Raises:
        CheckpointError: if the table is missing, or is not what the plan says.
    """
    found = site_tensors.take_relative_bias(source, plan)
    return None if found is None else torch.from_numpy(found)
