"""A fingerprint of a checkpoint's folder: cheap to take, and different once its files have changed."""

from __future__ import annotations

import os
from pathlib import Path

FolderState = tuple[tuple[str, int, int, int, int, int], ...]
"""For each file its name, device, inode, size, mtime and ctime (ns)."""


def folder_state(folder: Path) -> FolderState:
    """Return the state of a folder's files, symbolic links followed; empty if there is no such folder.

    The ctime reveals files that were rewritten with the old size and mtime.
    """
    found: list[tuple[str, int, int, int, int, int]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                facts = _facts(entry)
                if facts is not None:
                    found.append(
                        (entry.name, facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
                    )
    except OSError:  # missing or unreadable: opening it will say which
        return ()
    return tuple(sorted(found))


def _facts(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat()
    except OSError:  # deleted meanwhile, or a dangling link
        return None
