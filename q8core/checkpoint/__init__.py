"""Checkpoint folders: their contents, and how they are checked and written."""

from __future__ import annotations

from q8core.checkpoint.manifest import GoldenExample, Manifest
from q8core.checkpoint.reader import Checkpoint
from q8core.checkpoint.writer import write_checkpoint

__all__ = ["Checkpoint", "GoldenExample", "Manifest", "write_checkpoint"]
