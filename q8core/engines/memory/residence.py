"""Where a loaded model's weights are: in pages that processes share, or in memory of this process alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Residence:
    """Where the weights are.

    Attributes:
        shared: in pages of a mapped file, which every process that maps it has in common.
        note: from which file, or why not.
    """

    shared: bool
    note: str

    def facts(self) -> dict[str, object]:
        """Return it as plain values for `describe`."""
        return {"weights_memory": "shared" if self.shared else "private", "weights_note": self.note}


PACKED_BY_TORCH = Residence(False, "torch packs them for each process")
