"""Warnings that a process logs only once."""

from __future__ import annotations

import logging
from functools import cache


@cache
def warn_once(log: logging.Logger, message: str, *values: object) -> None:
    """Log a warning unless the same one, with the same values, was logged before.

    Args:
        log: the module's logger.
        message: with placeholders for the values, as for :meth:`logging.Logger.warning`.
        values: values for the message; hashable.
    """
    log.warning(message, *values)
