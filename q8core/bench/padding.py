"""Padded batches, for runtimes that do not pack: a rectangle, each sequence padded to the longest."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from q8core.engines import TokenBatch


class Padded(NamedTuple):
    """A padded batch, each int64 (B, longest); the mask is 1 on real tokens."""

    input_ids: Tensor
    token_type_ids: Tensor
    attention_mask: Tensor


def pad(batch: TokenBatch) -> Padded:
    """Return a batch with each sequence padded to the longest."""
    ids, types = (
        pad_sequence(list(torch.from_numpy(each).split(batch.lengths)), batch_first=True)
        for each in (batch.input_ids, batch.token_type_ids)
    )
    lengths = torch.tensor(batch.lengths)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return Padded(ids, types, mask)
