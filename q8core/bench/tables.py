"""What a benchmark prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import cast

from rich.box import SIMPLE
from rich.table import Table

from q8core.bench.resident import Resident
from q8core.bench.timing import Timing


def heading(environment: Mapping[str, object], threads: int) -> str:
    """Return the lines that say what was measured on."""
    flags = " ".join(cast("list[str]", environment["cpu_flags"])) or "none of the int8 flags"
    return (
        f"{environment['cpu']} ({environment['cpus']} CPUs usable, load {environment['load_average']}), {flags}\n"
        f"torch {environment['torch']} ({environment['torch_isa']}), transformers {environment['transformers']}, "
        f"Python {environment['python']}, {threads} threads"
    )


def timing_tables(timings: Sequence[Timing], title: str) -> list[Table]:
    """Return a table for each model, with a row per engine and shape."""
    tables: list[Table] = []
    for model, rows in groupby(timings, key=lambda timing: timing.model):
        table = _table(f"{model}: {title}", ("shape", "engine"))
        for column in ("median\nms", "quartiles", "tokens\n/s", "times\nstock", "quartiles"):
            table.add_column(column, justify="right", no_wrap=True)
        for _, same in groupby(rows, key=lambda timing: timing.shape):
            for timing in same:
                table.add_row(*_cells(timing))
            table.add_section()
        tables.append(table)
    return tables


def memory_table(found: Sequence[Resident], title: str) -> Table:
    """Return a table of what each engine added to a fresh process, in MiB."""
    table = _table(title, ("engine",))
    for column in (
        "loaded\nRSS", "loaded\nPSS", "in use\nRSS", "in use\nPSS", "peak of\nloading", "peak /\nloaded",
        "own\naccount", "load\ns",
    ):  # fmt: skip
        table.add_column(column, justify="right", no_wrap=True)
    for row in found:
        sizes = (row.loaded_rss, row.loaded_pss, row.used_rss, row.used_pss, row.peak_rss)
        table.add_row(
            row.engine,
            *(f"{size / 2**20:.1f}" for size in sizes),
            f"{row.peak_rss / max(row.loaded_rss, 1):.2f}",
            f"{row.reported / 2**20:.1f}" if row.reported else "",
            f"{row.load_seconds:.2f}",
        )
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    """Return a table that fits a terminal of 80 columns."""
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _cells(timing: Timing) -> tuple[str, ...]:
    low, high = timing.spread
    own = (f"{timing.median:.2f}", f"{low:.2f} - {high:.2f}", f"{timing.tokens_per_second:,.0f}")
    ratio, ratios = timing.ratio, timing.ratio_spread
    against = ("", "") if ratio is None or ratios is None else (f"{ratio:.2f}", f"{ratios[0]:.2f} - {ratios[1]:.2f}")
    return (timing.shape, timing.engine, *own, *against)
