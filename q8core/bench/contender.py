"""What a contender is, and the names of those that need no further packages. Imports no runtime and no engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from q8core.engines import TokenBatch

STOCK = "transformers"
ENGINES = ("fp32", "fp32-onednn", "int8-fbgemm", "int8-onednn", "int8-native")
SPLIT = "split-native"
FEW_BITS = {"w4-native": 4, "w2-native": 2, SPLIT: 2}
"""Engines whose encoder has weights of so many bits. Tables and head stay int8; but `SPLIT` is the preset binary-split
with half of the heads and feed-forward neurons."""
OURS = (*ENGINES, *FEW_BITS)
CONTENDERS = (STOCK, *ENGINES)
"""Contenders that need no further packages; stock transformers in fp32 first."""


class Contender(Protocol):
    """Something that computes a model's output for packed sequences."""

    def bind(self, batch: TokenBatch) -> Callable[[], object]:
        """Convert a batch to the contender's layout, which is not timed, and return the function to time."""
        ...
