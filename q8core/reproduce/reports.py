"""Table, JSON and picture of all runs in an output folder, rewritten after each scored method."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from q8core.bench.environment import environment
from q8core.reproduce.methods import BASELINES
from q8core.reproduce.plot import plot_errors
from q8core.reproduce.record import FP32, RunRecord, load_records
from q8core.reproduce.summary import summarize
from q8core.reproduce.table import Report, markdown

TABLE_FILE, RESULTS_FILE, PLOT_FILE = "table.md", "results.json", "relative_error.png"


@dataclass(frozen=True)
class Reports:
    """Writes the reports of an output folder.

    Attributes:
        output: the folder, with the runs in `runs`.
        base: the base model's name.
        scheme: the scheme of the quantization-aware training.
        plot: whether to draw a picture too.
    """

    output: Path
    base: str
    scheme: str
    plot: bool

    def write(self, planned: Sequence[RunRecord], draw: bool = True) -> None:
        """Write the reports of all runs in the folder, including those of earlier commands.

        Args:
            planned: the runs of this command, whose records may be newer than their files.
            draw: whether to draw the picture again, which takes a second.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        current = {(record.task, record.seed): record for record in planned}
        on_disk = load_records(self.output / "runs")
        records = [current.get((record.task, record.seed), record) for record in on_disk]
        machine, rows = environment(), summarize(records)
        table = markdown(Report(self.base, self.scheme, machine, records, len(planned)))
        replace_file(self.output / TABLE_FILE, table)
        document = {
            "base": self.base,
            "scheme": self.scheme,
            "planned_runs": len(planned),
            "environment": machine,
            "methods": {name: method.about for name, method in BASELINES.items()},
            "summary_in_percent": [row.to_dict() for row in rows],
            "runs": [record.to_dict() for record in records],
        }
        replace_file(self.output / RESULTS_FILE, json.dumps(document, indent=1) + "\n")
        if draw and self.plot and any(row.cells.keys() - {FP32} for row in rows):
            plot_errors(rows, self.base, machine, self.output / PLOT_FILE)


def replace_file(file: Path, text: str) -> None:
    """Write a file as a whole, or leave the old one."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)
