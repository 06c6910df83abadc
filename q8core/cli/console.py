"""Where tables are printed."""

from __future__ import annotations

import os

from rich.console import Console

_WIDTH = 160


def table_console() -> Console:
    """Return a console as wide as the terminal; into a file or pipe, which has no width, no column is cut."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=_WIDTH)
