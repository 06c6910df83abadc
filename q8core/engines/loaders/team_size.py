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
_TRY_AFTER = 32
"""Passes after which another team has its turn, since what is known of it may be out of date."""


class TeamSize:
    """Chooses among the most threads, half as many, and so on down to one.

    The speed of a team is what its slowest thread could compute, times its threads: 2.0 for two with a CPU each, 1.0 if
    one of the two had one for half of the time. A team that was not used yet is taken to be as fast as it can be.
    """

    def __init__(self) -> None:
        self._speeds: dict[int, float] = {}
        self._passes = 0

    def choose(self, most: int) -> int:
        """Return the number of threads for the next pass, 1 to `most`."""
        sizes, best = _halvings(most), most
        for smaller in sizes[1:]:
            if self._speed(smaller) * _GAIN > self._speed(best):
                best = smaller
        self._passes += 1
        turn, rest = divmod(self._passes, _TRY_AFTER)
        others = [size for size in sizes if size != best and size * _GAIN > self._speed(best)]
        return best if rest or not others else others[turn % len(others)]

    def observe(self, threads: int, share: float) -> None:
        """Account for a pass.

        Args:
            threads: how many computed it.
            share: the part of its time, 0 to 1, for which the thread had a CPU that had one for the least.
        """
        self._speeds[threads] = _KEEP * self._speed(threads) + (1 - _KEEP) * threads * share

    def _speed(self, threads: int) -> float:
        return self._speeds.get(threads, float(threads))


def _halvings(most: int) -> list[int]:
    """Return most, most // 2, ..., 1."""
    return [most >> times for times in range(most.bit_length())]
