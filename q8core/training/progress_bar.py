"""The progress bar of what takes minutes: it moves on a terminal, and gives a log file one line a minute."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(what: str, total: int, unit: str, *, initial: int = 0, off: bool = False) -> tqdm[Any]:
    """Return a bar for `total` units of work.

    Args:
        what: the work.
        total: number of all units.
        unit: what is counted.
        initial: number of units done before, by an earlier command.
        off: whether to show nothing.
    """
    quiet = 0.1 if sys.stderr.isatty() else 60
    return tqdm(None, what, total, disable=off, unit=unit, mininterval=quiet, dynamic_ncols=True, initial=initial)
