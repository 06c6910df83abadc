"""The queue of one engine, in two classes, so that no short request waits for a whole long document.

A request is long if it does not fit in half of a batch: a long context in many windows, or a long list of texts. Each
class is first in, first out. While any short request waits, long ones get at most half of a batch, and after each turn
they line up again behind everything that has arrived meanwhile. So the wait of a short request depends on the short
ones before it and on the number of engines, not on the length or number of documents; and long ones get their turns
however many short ones arrive. With no short request waiting, long ones fill whole batches.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


def long_share(budget: int) -> int:
    """Return the tokens of a batch for long requests while short ones wait; a request with more tokens is long."""
    return max(1, budget // 2)


class _Waiting(NamedTuple, Generic[T]):
    entry: T
    tokens: int


class LaneQueue(Generic[T]):
    """The waiting sequences of one engine; not thread-safe.

    Keys are arrival numbers shared by all lanes, so that lanes can be compared by how long their next item has waited.

    Args:
        budget: tokens of a batch; a longer sequence gets a batch of its own.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._share = long_share(budget)
        self._short: OrderedDict[int, _Waiting[T]] = OrderedDict()
        self._long: OrderedDict[int, _Waiting[T]] = OrderedDict()
        self._turn: int | None = None
        """When the long ones began to wait for their turn, as an arrival number; None: they line up again."""
        self._overdraft = 0
        """Tokens that long sequences took beyond their share, because one was larger than the share."""
        self.short_tokens = 0
        self.long_tokens = 0

    def __len__(self) -> int:
        return len(self._short) + len(self._long)

    @property
    def tokens(self) -> int:
        """All waiting tokens."""
        return self.short_tokens + self.long_tokens

    @property
    def short_waits(self) -> bool:
        """Whether a short request waits."""
        return bool(self._short)

    @property
    def tokens_before_short(self) -> int:
        """The most tokens that would be computed before a short request that arrives now."""
        return self.short_tokens + min(self.long_tokens, self.short_tokens + self._budget)

    def add(self, key: int, entry: T, tokens: int, *, long: bool) -> None:
        """Append a sequence to its class."""
        if long:
            if not self._long:
                self._turn = key
            self._long[key] = _Waiting(entry, tokens)
            self.long_tokens += tokens
        else:
            self._short[key] = _Waiting(entry, tokens)
            self.short_tokens += tokens

    def discard(self, key: int) -> None:
        """Remove a sequence."""
        found = self._short.pop(key, None)
        if found is not None:
            self.short_tokens -= found.tokens
        else:
            self.long_tokens -= self._long.pop(key).tokens

    def rank(self, now: int) -> int | None:
        """Return the arrival number by which this lane waits for its turn; None if nothing waits.

        Args:
            now: the next arrival number, at which long sequences line up after a turn.
        """
        if self._long and self._turn is None:
            self._turn = now
        heads = [next(iter(self._short))] if self._short else []
        if self._long and self._turn is not None:
            heads.append(self._turn)
        return min(heads, default=None)

    def pop_batch(self, *, short_waits_anywhere: bool) -> list[T]:
        """Remove and return the next batch, which is never empty while something waits."""
        taken: list[T] = []
        allowed = self._share if short_waits_anywhere else self._budget
        overdraft = self._overdraft if self._short else 0
        long_taken = self._take(taken, self._long, allowed - overdraft, force=overdraft == 0)
        self._overdraft = max(0, overdraft + long_taken - allowed)
        self.long_tokens -= long_taken
        self.short_tokens -= self._take(taken, self._short, self._budget - long_taken, force=not taken)
        self._turn = None
        return taken

    @staticmethod
    def _take(taken: list[T], line: OrderedDict[int, _Waiting[T]], room: int, *, force: bool) -> int:
        """Move the head of a line while it fits, if forced at least one item; return the moved tokens."""
        moved = 0
        while line:
            key = next(iter(line))
            waiting = line[key]
            if moved + waiting.tokens > room and not (force and not moved):
                break
            del line[key]
            taken.append(waiting.entry)
            moved += waiting.tokens
        return moved
