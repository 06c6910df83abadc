"""Padded batches, for runtimes that do not pack: a rectangle, each sequence padded to the longest."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from q8core.engines import TokenBatch


class Padded(NamedTuple):
    """A padded batch, each int64 (B, longest); the mask is 1 on real tokens."""

    input_ids: NDArray[np.int64]
    token_type_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]


def pad(batch: TokenBatch) -> Padded:
    """Return a batch with each sequence padded to the longest."""
    real = np.arange(max(batch.lengths)) < np.array(batch.lengths)[:, None]
    ids, types = np.zeros(real.shape, np.int64), np.zeros(real.shape, np.int64)
    ids[real], types[real] = batch.input_ids, batch.token_type_ids
    return Padded(ids, types, real.astype(np.int64))
