"""What a benchmark prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

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


def timing_table(timings: Sequence[Timing], title: str) -> Table:
    """Return a table with a row per engine and shape."""
    table = Table("model", "shape", "engine", title=title, title_justify="left")
    for column in ("median ms", "quartiles", "tokens/s", "x transformers", "quartiles"):
        table.add_column(column, justify="right")
    last = None
    for timing in timings:
        place = (timing.model, timing.shape)
        if last not in (None, place):
            table.add_section()
        last = place
        low, high = timing.spread
        ratio, ratios = timing.ratio, timing.ratio_spread
        table.add_row(
            timing.model,
            timing.shape,
            timing.engine,
            f"{timing.median:.2f}",
            f"{low:.2f} - {high:.2f}",
            f"{timing.tokens_per_second:,.0f}",
            "" if ratio is None else f"{ratio:.2f}",
            "" if ratios is None else f"{ratios[0]:.2f} - {ratios[1]:.2f}",
        )
    return table


def memory_table(found: Sequence[Resident], title: str) -> Table:
    """Return a table of what each engine added to a fresh process, in MiB."""
    table = Table("engine", title=title, title_justify="left")
    for column in (
        "loaded RSS",
        "PSS",
        "in use RSS",
        "PSS",
        "peak of loading",
        "peak / loaded",
        "own account",
        "load s",
    ):
        table.add_column(column, justify="right")
    for row in found:
        mib = [f"{value / 2**20:.1f}" for value in (row.loaded_rss, row.loaded_pss, row.used_rss, row.used_pss)]
        table.add_row(
            row.engine,
            *mib,
            f"{row.peak_rss / 2**20:.1f}",
            f"{row.peak_rss / max(row.loaded_rss, 1):.2f}",
            f"{row.reported / 2**20:.1f}" if row.reported else "",
            f"{row.load_seconds:.2f}",
        )
    return table
