"""How many threads the native kernel's next pass gets where other processes take CPU time from earlier ones.

The threads of a pass wait for each other several times a layer. Where one of them shares its CPU with another process,
all are as slow as that one: beside a busy process on two CPUs, two threads finish a sentence later than one does, but a
long text earlier. Which it is follows from the CPU time that the threads got.
"""

from __future__ import annotations

_KEEP = 0.7
"""Weight of the past after each pass."""
_GAIN = 1.2
"""How much faster the larger of two teams has to be: its threads also wait for each other, and use more CPU time."""
_KEEP_TRIED = 0.4
"""The same for a team that was only tried: what is known of it is old."""
_TRY_AFTER, _TRY_AFTER_S = 32, 0.5
"""Passes, or seconds of computing, after which another team is tried. With long passes alone 32 would take seconds, of
which the start of a service, where much else runs, would cost the half."""


class TeamSize:
    """Chooses among the most threads, half as many, and so on down to one.

    The speed of a team is what its slowest thread could compute, times its threads: 2.0 for two with a CPU each, 1.0 if
    one of the two had one for half of the time. A team that was not used yet is taken to be as fast as it can be.
    """

    def __init__(self) -> None:
        self._speeds: dict[int, float] = {}
        self._passes, self._seconds = 0, 0.0  # since another team was tried
        self._tries = 0
        self._tried: int | None = None  # by the last pass

    def choose(self, most: int) -> int:
        """Return the number of threads for the next pass, 1 to `most`."""
        sizes, best = _halvings(most), most
        for smaller in sizes[1:]:
            if self._speed(smaller) * _GAIN > self._speed(best):
                best = smaller
        self._tried = None
        if self._passes < _TRY_AFTER and self._seconds < _TRY_AFTER_S:
            return best
        self._passes, self._seconds = 0, 0.0
        others = [size for size in sizes if size != best and size * _GAIN > self._speed(best)]
        if not others:
            return best
        self._tries += 1
        self._tried = others[self._tries % len(others)]
        return self._tried

    def observe(self, threads: int, share: float, seconds: float) -> None:
        """Account for a pass.

        Args:
            threads: how many computed it.
            share: the part of its time, 0 to 1, for which the thread had a CPU that had one for the least.
            seconds: its time.
        """
        keep = _KEEP_TRIED if threads == self._tried else _KEEP
        self._speeds[threads] = keep * self._speed(threads) + (1 - keep) * threads * share
        self._passes += 1
        self._seconds += seconds

    def _speed(self, threads: int) -> float:
        return self._speeds.get(threads, float(threads))


def _halvings(most: int) -> list[int]:
    """Return most, most // 2, ..., 1."""
    return [most >> times for times in range(most.bit_length())]
