"""The tables that a benchmark prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import cast

from rich.box import SIMPLE
from rich.table import Table

from q8core.bench.comparison import FLOOR, FP32_PEER, INT8_PEER
from q8core.bench.contender import STOCK
from q8core.bench.resident import Resident
from q8core.bench.threads import threads_text
from q8core.bench.timing import PERCENTILES, Timing
from q8core.bench.training_steps import AUTOCAST

_KEYS = ("work-\nload", "contender")
_COMPARED = "a batch's latency; times the floor's time; times faster than the fastest peer"
_REFERENCES = {FLOOR: "x\nfloor", FP32_PEER: "x fp32\npeer", INT8_PEER: "x int8\npeer"}
"""Reference -> heading of its column."""


def heading(environment: Mapping[str, object], threads: Sequence[int]) -> str:
    """Return lines about the machine of the measurement."""
    flags = " ".join(cast("list[str]", environment["cpu_flags"])) or "none of the int8 flags"
    return (
        f"{environment['cpu']} ({environment['cpus']} CPUs usable, load {environment['load_average']}), {flags}\n"
        f"torch {environment['torch']} ({environment['torch_isa']}), transformers {environment['transformers']}, "
        f"Python {environment['python']}, {threads_text(threads)}"
    )


def timing_tables(timings: Sequence[Timing], title: str) -> list[Table]:
    """Return a table for each model and thread count, with a row per contender and workload."""
    return [_timing_table(list(rows), f"{_name(*key)}: {title}") for key, rows in _by_model(timings)]


def comparison_tables(
    timings: Sequence[Timing], load_seconds: Mapping[tuple[str, int], Mapping[str, float]]
) -> list[Table]:
    """Return a table for each model and thread count: latency of batches, ratios to the floor and to the fastest peers.

    Args:
        timings: the measured timings.
        load_seconds: (model, threads) -> contender -> seconds.
    """
    tables: list[Table] = []
    for key, rows in _by_model(timings):
        known = list(rows)
        has = [name for name in (FLOOR, FP32_PEER, INT8_PEER) if any(name in timing.references for timing in known)]
        table = _table(f"{_name(*key)}: {_COMPARED}", _KEYS)
        for column in (*(f"p{p}\nms" for p in PERCENTILES), *(_REFERENCES[name] for name in has), "load\ns"):
            table.add_column(column, justify="right", no_wrap=True)
        for _, same in groupby(known, key=lambda timing: timing.workload):
            for timing in same:
                load = load_seconds.get(key, {}).get(timing.engine)
                table.add_row(
                    timing.workload,
                    timing.engine,
                    *map(_ms, timing.latencies.values()),
                    *(_against(timing, name) for name in has),
                    "" if load is None else f"{load:.2f}",
                )
            table.add_section()
        tables.append(table)
    return tables


def training_tables(timings: Sequence[Timing], title: str) -> list[Table]:
    """Return a table for each model and thread count: each step's time, and its ratios to both stock steps."""
    tables: list[Table] = []
    for key, rows in _by_model(timings):
        table = _table(f"{_name(*key)}: {title}", ("batch", "step"))
        for column in ("median\nms", "quartiles"):
            table.add_column(column, justify="right", no_wrap=True)
        for name in ("stock\nfp32", "stock\nbf16"):
            table.add_column(f"x {name}", justify="right", no_wrap=True)
            table.add_column("quartiles", justify="right", no_wrap=True)
        for _, same in groupby(rows, key=lambda timing: timing.workload):
            for timing in same:
                low, high = timing.spread
                table.add_row(
                    timing.workload,
                    timing.engine,
                    _ms(timing.median),
                    f"{_ms(low)}-{_ms(high)}",
                    *_times_of(timing, STOCK),
                    *_times_of(timing, AUTOCAST),
                )
            table.add_section()
        tables.append(table)
    return tables


def memory_table(found: Sequence[Resident], title: str) -> Table:
    """Return a table of the MiB that each engine added to a fresh process and to a second one, and of a whole one."""
    table = _table(title, ("engine",))
    for column in (
        "loaded\nRSS", "in use\nRSS", "peak of\nloading", "own\naccount", "load\ns", "2nd\nloaded", "2nd\nin use",
        "whole\nprocess", "first\nanswer s",
    ):  # fmt: skip
        table.add_column(column, justify="right", no_wrap=True)
    for row in found:
        table.add_row(
            row.engine,
            *(f"{size / 2**20:.1f}" for size in (row.loaded_rss, row.used_rss, row.peak_rss)),
            f"{row.reported / 2**20:.1f}" if row.reported else "",
            f"{row.load_seconds:.2f}",
            *(f"{size / 2**20:.1f}" for size in (row.second_loaded_uss, row.second_used_uss, row.process_rss)),
            f"{row.first_answer_seconds:.2f}",
        )
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    """Return a table that fits a terminal of 80 columns."""
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _by_model(timings: Sequence[Timing]) -> Iterator[tuple[tuple[str, int], Iterator[Timing]]]:
    return groupby(timings, key=lambda timing: (timing.model, timing.threads))


def _name(model: str, threads: int) -> str:
    return f"{model}, {threads_text((threads,))}"


def _timing_table(timings: Sequence[Timing], title: str) -> Table:
    table = _table(title, _KEYS)
    for column in ("median\nms", "quartiles", "tokens\n/s", "times\nstock", "quartiles"):
        table.add_column(column, justify="right", no_wrap=True)
    for _, same in groupby(timings, key=lambda timing: timing.workload):
        for timing in same:
            table.add_row(*_cells(timing))
        table.add_section()
    return table


def _cells(timing: Timing) -> tuple[str, ...]:
    low, high = timing.spread
    own = (_ms(timing.median), f"{_ms(low)}-{_ms(high)}", f"{timing.tokens_per_second:,.0f}")
    ratio = timing.faster_than(STOCK)
    against = ("", "") if ratio is None else (f"{ratio.median:.2f}", f"{ratio.low:.2f}-{ratio.high:.2f}")
    return (timing.workload, timing.engine, *own, *against)


def _against(timing: Timing, reference: str) -> str:
    """Return its time divided by the floor's, or how many times faster than a peer it is."""
    ratio = timing.over(reference) if reference == FLOOR else timing.faster_than(reference)
    return "" if ratio is None else f"{ratio.median:.2f}"


def _times_of(timing: Timing, reference: str) -> tuple[str, str]:
    """Return its time divided by the reference's, and the quartiles."""
    ratio = timing.over(reference)
    return ("", "") if ratio is None else (f"{ratio.median:.2f}", f"{ratio.low:.2f}-{ratio.high:.2f}")


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"
