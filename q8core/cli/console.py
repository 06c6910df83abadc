"""The console for tables."""

from __future__ import annotations

import os

from rich.console import Console

_WIDTH = 160


def table_console() -> Console:
    """Return a console as wide as the terminal; output to a file or pipe is not cut."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=_WIDTH)
