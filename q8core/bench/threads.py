"""The CPU thread counts of a run: one, or several to compare."""

from __future__ import annotations

from collections.abc import Sequence

from q8core.bench.environment import usable_cpus
from q8core.errors import InputError


def parse_threads(texts: Sequence[str]) -> list[int]:
    """Return thread counts in the order given, without duplicates; for no text, the number of usable CPUs.

    Args:
        texts: counts, or lists of them such as `1,2`.

    Raises:
        InputError: if one is not a whole number of at least 1.
    """
    counts: list[int] = []
    for text in texts:
        for part in text.split(","):
            if not part.strip().isdecimal() or int(part) < 1:
                raise InputError(f"--threads is {text!r}; expected a count of at least 1, or several such as 1,2")
            counts.append(int(part))
    return list(dict.fromkeys(counts)) or [usable_cpus()]


def threads_text(counts: Sequence[int]) -> str:
    """Return the counts in words: `1 thread`, `2 threads`, `1 and 2 threads`."""
    *others, last = (str(count) for count in counts)
    words = f"{', '.join(others)} and {last}" if others else last
    return f"{words} thread" if words == "1" else f"{words} threads"
