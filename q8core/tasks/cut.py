"""Counts and logs texts that were cut to the longest input."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from q8core.say_once import warn_once

log = logging.getLogger(__name__)


@dataclass
class CutTexts:
    """How many texts of each part of the data were cut when they were last encoded.

    Attributes:
        counts: part (``training``, ``dev``) -> number of texts.
    """

    counts: dict[str, int] = field(default_factory=dict[str, int])

    def note(self, part: str, what: str, cut: int, total: int, limit: int) -> None:
        """Record a count, and log it once if anything was cut.

        Args:
            part: the part of the data.
            what: "texts" or "questions".
            cut: how many were cut.
            total: how many there are.
            limit: the longest input in tokens.
        """
        self.counts[part] = cut
        if cut:
            option = " (--max-length)" if what == "texts" else ""
            message = "%d of %d %s %s are cut: longer than %d tokens%s"
            warn_once(log, message, cut, total, part, what, limit, option)
