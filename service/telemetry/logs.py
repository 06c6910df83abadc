"""Log lines: for people by default, one JSON object each with ``--json-logs``; never a request's text."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

FIELDS = "fields"
"""Name of the ``extra`` that holds a record's own fields."""


class JsonFormatter(logging.Formatter):
    """Writes a record as one JSON object: time, level, logger, message, the record's own fields, the exception.

    Args:
        common: fields in every line.
    """

    def __init__(self, common: dict[str, Any]) -> None:
        super().__init__()
        self._common = common

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without the newline."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._common,
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(level: str, *, json_lines: bool = False, worker: int | None = None) -> None:
    """Send every logger's lines to stderr.

    Args:
        level: the least severe level to log.
        json_lines: one JSON object per line instead of a sentence.
        worker: number of this process where several serve, shown in each line.
    """
    handler = logging.StreamHandler(sys.stderr)
    if json_lines:
        handler.setFormatter(JsonFormatter({} if worker is None else {"worker": worker}))
    else:
        level_shown = "%(levelname)s" if worker is None else f"worker {worker} %(levelname)s"
        handler.setFormatter(logging.Formatter(f"%(asctime)s {level_shown} %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # uvicorn's messages about its own steps repeat ours
    logging.getLogger("uvicorn").setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
