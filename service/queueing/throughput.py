"""The measured speed of the engines, for Retry-After and for refusing what cannot be computed in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from service.queueing.batcher import Lane

# Weight of the past after each batch: the average covers about the last twenty batches.
_KEEP = 0.95


class Throughput:
    """Tokens per second of each lane, as a decaying average over its batches.

    Written by the engine thread and read under the queue's lock: an inconsistent read would only blur an estimate.
    """

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._tokens = dict.fromkeys(lanes, 0.0)
        self._seconds = dict.fromkeys(lanes, 0.0)

    def add(self, lanes: Sequence[Lane]) -> None:
        """Measure further lanes."""
        for lane in lanes:
            self._tokens.setdefault(lane, 0.0)
            self._seconds.setdefault(lane, 0.0)

    def remove(self, lanes: Sequence[Lane]) -> None:
        """Forget lanes that are gone."""
        for lane in lanes:
            self._tokens.pop(lane, None)
            self._seconds.pop(lane, None)

    def observe(self, lane: Lane, tokens: int, seconds: float) -> None:
        """Account for one computed batch."""
        if lane not in self._seconds:
            return  # removed while its last batch, which no request waited for, was computed
        self._tokens[lane] = self._tokens.get(lane, 0.0) * _KEEP + tokens
        self._seconds[lane] = self._seconds.get(lane, 0.0) * _KEEP + seconds

    def tokens_per_second(self, lane: Lane) -> float | None:
        """Return the measured speed, None before the first batch."""
        seconds = self._seconds.get(lane, 0.0)
        return self._tokens.get(lane, 0.0) / seconds if seconds > 0 else None

    def drain_seconds(self, tokens: Mapping[Lane, int]) -> float | None:
        """Return the time to compute these tokens, one lane after another; None if a needed speed is not known yet."""
        total = 0.0
        for lane, waiting in tokens.items():
            if waiting:
                speed = self.tokens_per_second(lane)
                if speed is None:
                    return None
                total += waiting / speed
        return total
