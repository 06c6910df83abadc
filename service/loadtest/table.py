"""The printed report of a load test."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.table import Table

from service.loadtest.load import OK, Load
from service.loadtest.summary import Spread, Summary

_COLUMNS = ("requests", "p50", "p90", "p99", "p99.9", "max")


def summary_table(summary: Summary) -> Table:
    """Return latencies by task and outcome, in milliseconds."""
    table = Table(title="milliseconds", title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for task, outcomes in summary.latency.items():
        for outcome, spread in outcomes.items():
            table.add_row(f"{task} {outcome}", *_cells(spread))
    table.add_section()
    if summary.from_sending.count:
        table.add_row(f"{OK}, from actual sending", *_cells(summary.from_sending))
    if summary.outside_inference.count:
        table.add_row(f"{OK}, less inference", *_cells(summary.outside_inference))
    table.add_row("sent late by", *_cells(summary.lateness))
    return table


def summary_lines(summary: Summary, load: Load) -> str:
    """Return throughput, refusals and the generator's own CPU use, in sentences."""
    lines = [
        f"asked {summary.asked_per_s:.1f}/s, answered {summary.answered_per_s:.1f}/s "
        f"({summary.tokens_per_s:,.0f} tokens/s); the generator used {summary.generator_cpus:.2f} CPUs"
    ]
    if load.concurrency is not None:
        lines.append(f"closed loop of {load.concurrency} clients: throughput at saturation, not latency under a load")
    wait = summary.retry_after
    if wait is not None:
        lines.append(f"Retry-After in {wait.count} answers: {wait.min:g} to {wait.max:g} s, median {wait.median:g}")
    return "\n".join(lines)


def _cells(spread: Spread) -> tuple[str, ...]:
    values = (spread.p50, spread.p90, spread.p99, spread.p99_9, spread.max)
    return (str(spread.count), *("" if value is None else _number(value) for value in values))


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"
