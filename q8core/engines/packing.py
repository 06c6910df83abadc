"""Token batches without padding: sequences one after another in one row of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from q8core.errors import InputError
from q8core.model.head import Reads

Number = TypeVar("Number", bound=np.number)


class Run(NamedTuple):
    """Adjacent sequences of equal length, which share one attention call."""

    first_token: int
    first_sequence: int
    sequences: int
    length: int


@dataclass(frozen=True)
class TokenBatch:
    """Sequences packed into one row of T tokens, without padding.

    Attributes:
        input_ids: int64 (T,).
        token_type_ids: int64 (T,).
        lengths: number of tokens of each sequence; they sum to T.

    Raises:
        InputError: if the batch or a sequence is empty, or the parts do not fit together.

    Example:
        >>> batch = TokenBatch.pack([([101, 7592, 102], [0, 0, 0]), ([101, 102], [0, 0])])
        >>> batch.lengths
        (3, 2)
    """

    input_ids: NDArray[np.int64]
    token_type_ids: NDArray[np.int64]
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.lengths:
            raise InputError("a batch needs at least one sequence; found none")
        if min(self.lengths) < 1:
            raise InputError(f"sequence {self.lengths.index(min(self.lengths))} of the batch has no tokens")
        shape = (sum(self.lengths),)
        for name, ids in (("input_ids", self.input_ids), ("token_type_ids", self.token_type_ids)):
            if ids.shape != shape or ids.dtype != np.int64:
                raise InputError(
                    f"{name} must be int64 of shape {shape}, the sum of the lengths; found {ids.dtype} of shape "
                    f"{ids.shape}"
                )

    @classmethod
    def pack(cls, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> TokenBatch:
        """Pack pairs of (input_ids, token_type_ids), each without padding.

        Raises:
            InputError: if there is no sequence, one is empty, or ids and types differ in length.
        """
        for place, (ids, types) in enumerate(sequences):
            if len(ids) != len(types):
                raise InputError(f"sequence {place} has {len(ids)} input_ids but {len(types)} token_type_ids")
        return cls(
            np.array(list(chain.from_iterable(ids for ids, _ in sequences)), np.int64),
            np.array(list(chain.from_iterable(types for _, types in sequences)), np.int64),
            tuple(len(ids) for ids, _ in sequences),
        )

    @property
    def tokens(self) -> int:
        """T, the number of tokens of all sequences."""
        return len(self.input_ids)

    def split(self, logits: NDArray[Number], reads: Reads) -> list[NDArray[Number]]:
        """Return the logits of each sequence, as views of `logits`.

        Args:
            logits: (B, C) of a head that reads the "first" token of each sequence, (T, C) of one that reads "every".
            reads: which of the two, as in `Engine.reads`.

        Returns:
            (C,) of each sequence, or (length, C).

        Raises:
            InputError: if `logits` has another number of rows.
        """
        rows, what = (len(self.lengths), "sequences") if reads == "first" else (self.tokens, "tokens")
        if len(logits) != rows:
            raise InputError(f"{len(logits)} rows of logits do not fit {rows} {what}")
        return list(logits) if reads == "first" else np.split(logits, np.cumsum(self.lengths[:-1]))

    def positions(self) -> NDArray[np.int64]:
        """Return the position of each token in its own sequence, int64 (T,)."""
        return np.concatenate([np.arange(length) for length in self.lengths])

    def first_rows(self) -> NDArray[np.int64]:
        """Return the row of each sequence's first token, int64 (B,)."""
        lengths = np.array(self.lengths, np.int64)
        return np.cumsum(lengths) - lengths

    def runs(self) -> list[Run]:
        """Return the runs of adjacent sequences of equal length, in order."""
        runs: list[Run] = []
        token = sequence = 0
        for length, group in groupby(self.lengths):
            count = sum(1 for _ in group)
            runs.append(Run(token, sequence, count, length))
            token, sequence = token + count * length, sequence + count
        return runs
