"""Table, JSON and picture of all schemes in an output folder, rewritten after each scored method."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from q8core.bench.environment import environment
from q8core.checkpoint.config import ModelConfig
from q8core.reproduce.data import TITLES
from q8core.reproduce.record import RunRecord, load_records, load_scheme_records
from q8core.reproduce.reports import replace_file
from q8core.reproduce.scheme_plot import plot_schemes
from q8core.reproduce.scheme_speed import Speed, measure_speed
from q8core.reproduce.scheme_summary import scheme_lines
from q8core.reproduce.scheme_table import scheme_markdown

TABLE_FILE, RESULTS_FILE, PLOT_FILE = "schemes.md", "schemes.json", "schemes.png"


@dataclass(frozen=True)
class SchemeReports:
    """Writes the reports of an output folder's schemes.

    Attributes:
        output: the folder, with the runs in `runs`.
        base: the base model's name.
        config: the base model's config.
        order: names of the command's schemes, in its order.
        plot: whether to draw a picture too.
    """

    output: Path
    base: str
    config: ModelConfig
    order: Sequence[str]
    plot: bool

    def write(self, planned: Sequence[RunRecord], draw: bool = True) -> None:
        """Write the reports of all runs in the folder, including those of earlier commands.

        Args:
            planned: the runs of this command, whose records may be newer than their files.
            draw: whether to draw the picture again, which takes a second.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        current, runs = {record.folder: record for record in planned}, self.output / "runs"
        fine_tuned, of_schemes = (
            [current.get(record.folder, record) for record in load(runs)]
            for load in (load_records, load_scheme_records)
        )
        tasks = [task for task in TITLES if any(record.task == task for record in of_schemes)]
        speeds = {task: speed for task in tasks if (speed := Speed.load(runs / task)) is not None}
        lines = {
            task: scheme_lines(
                task,
                [record for record in fine_tuned if record.task == task],
                [record for record in of_schemes if record.task == task],
                self.order,
                speeds.get(task),
                self.config,
            )
            for task in tasks
        }
        machine, records = environment(), [*fine_tuned, *of_schemes]
        replace_file(self.output / TABLE_FILE, scheme_markdown(self.base, machine, lines, speeds, records))
        document = {
            "base": self.base,
            "schemes": list(self.order),
            "environment": machine,
            "summary_in_percent": [line.to_dict() for of_task in lines.values() for line in of_task],
            "speed": {task: speed.document for task, speed in speeds.items()},
            "runs": [record.to_dict() for record in records],
        }
        replace_file(self.output / RESULTS_FILE, json.dumps(document, indent=1) + "\n")
        if draw and self.plot and any(lines.values()):
            plot_schemes(lines, self.base, machine, self.output / PLOT_FILE)

    def measure(self, task: str, seed: int) -> bool:
        """Time the task's finished checkpoints of a seed; return False if there are none."""
        on_disk = load_scheme_records(self.output / "runs")
        found = [record for record in on_disk if (record.task, record.seed) == (task, seed) and record.complete]
        if found:
            measure_speed(found, self.output / "runs" / task)
        return bool(found)
