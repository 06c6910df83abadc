"""Warnings that a process logs once, however often it meets their cause."""

from __future__ import annotations

import logging
from functools import cache


@cache
def warn_once(log: logging.Logger, message: str, *values: object) -> None:
    """Log a warning unless the same one, with the same values, was logged before.

    Args:
        log: of the module that speaks.
        message: with the values' places, as for :meth:`logging.Logger.warning`.
        values: hashable.
    """
    log.warning(message, *values)
