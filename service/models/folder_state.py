"""What a checkpoint's folder looks like from outside: cheap to ask for, and different once its files are."""

from __future__ import annotations

import os
from pathlib import Path

FolderState = tuple[tuple[str, int, int, int, int, int], ...]
"""For each file its name, device, inode, size, and times of the last write and of the last change (ns)."""


def folder_state(folder: Path) -> FolderState:
    """Look at the files of a folder, links followed; empty where there is no such folder.

    The time of the change tells of files that were rewritten with the old ones' size and time of writing.
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
    except OSError:  # gone, or not to be read: opening it says which
        return ()
    return tuple(sorted(found))


def _facts(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat()
    except OSError:  # it left meanwhile, or is a link that leads nowhere
        return None
