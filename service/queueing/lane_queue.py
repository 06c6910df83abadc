"""What waits for one engine, in two classes, so that no short request waits for a long document to end.

A request is long when it does not fit in half of a batch: a long context in many windows, or a long list of texts.
Each class is first in, first out. While any short request waits, long ones get half of a batch at most, and after
each turn they line up again behind everything that has come meanwhile. So the wait of a short request depends on the
short ones before it and on the number of engines, never on how long the documents are or how many; and long ones get
their turns however many short ones come. With no short request waiting, long ones fill whole batches.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


def long_share(budget: int) -> int:
    """Tokens of a batch that are for long requests while short ones wait; what has more tokens than these is long."""
    return max(1, budget // 2)


class _Waiting(NamedTuple, Generic[T]):
    entry: T
    tokens: int


class LaneQueue(Generic[T]):
    """The waiting sequences of one engine; not thread-safe.

    Keys are arrival numbers shared by all lanes, so that lanes can be compared by how long their next has waited.

    Args:
        budget: tokens of a batch; a longer sequence goes alone.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._share = long_share(budget)
        self._short: OrderedDict[int, _Waiting[T]] = OrderedDict()
        self._long: OrderedDict[int, _Waiting[T]] = OrderedDict()
        self._turn: int | None = None
        """When the long ones began to wait for their turn, as an arrival number; None: they line up anew."""
        self._overdraft = 0
        """Tokens that long sequences took beyond their share, because one is larger than it."""
        self.short_tokens = 0
        self.long_tokens = 0

    def __len__(self) -> int:
        return len(self._short) + len(self._long)

    @property
    def tokens(self) -> int:
        """Tokens of everything that waits."""
        return self.short_tokens + self.long_tokens

    @property
    def short_waits(self) -> bool:
        """Whether a short request waits."""
        return bool(self._short)

    @property
    def tokens_before_short(self) -> int:
        """Tokens that are computed before a short request that came now, at most."""
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
        """Take a sequence out of the line."""
        found = self._short.pop(key, None)
        if found is not None:
            self.short_tokens -= found.tokens
        else:
            self.long_tokens -= self._long.pop(key).tokens

    def rank(self, now: int) -> int | None:
        """Arrival number by which this lane waits for its turn; None where nothing waits.

        Args:
            now: the next arrival number, where long sequences line up that just had a turn.
        """
        if self._long and self._turn is None:
            self._turn = now
        heads = [next(iter(self._short))] if self._short else []
        if self._long and self._turn is not None:
            heads.append(self._turn)
        return min(heads, default=None)

    def pop_batch(self, *, short_waits_anywhere: bool) -> list[T]:
        """Take the next batch out of the line: never empty while something waits."""
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
        """Move the head of a line while it fits, the first one anyway where forced; return the tokens moved."""
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
