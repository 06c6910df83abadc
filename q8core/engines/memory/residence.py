"""Where a loaded model's weights are: in pages shared between processes, or in this process's own memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Residence:
    """Where the weights are.

    Attributes:
        shared: whether they are in pages of a mapped file, which all processes that map it share.
        note: the file, or why they are not shared.
    """

    shared: bool
    note: str

    def facts(self) -> dict[str, object]:
        """Return both as plain values for `describe`."""
        return {"weights_memory": "shared" if self.shared else "private", "weights_note": self.note}


PACKED_BY_TORCH = Residence(False, "torch packs them for each process")
