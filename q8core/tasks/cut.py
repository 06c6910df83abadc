"""Texts that were cut to the longest input: counted, and said in the log."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from q8core.say_once import warn_once

log = logging.getLogger(__name__)


@dataclass
class CutTexts:
    """How many texts of each part of the data were cut when they were encoded last.

    Attributes:
        counts: part (``training``, ``dev``) -> number of texts.
    """

    counts: dict[str, int] = field(default_factory=dict[str, int])

    def note(self, part: str, what: str, cut: int, total: int, limit: int) -> None:
        """Count, and log once where something was cut.

        Args:
            part: of the data.
            what: texts or questions.
            cut: how many were cut.
            total: how many there are.
            limit: their longest, in tokens.
        """
        self.counts[part] = cut
        if cut:
            option = " (--max-length)" if what == "texts" else ""
            message = "%d of %d %s %s are cut: longer than %d tokens%s"
            warn_once(log, message, cut, total, part, what, limit, option)
