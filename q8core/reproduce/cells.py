"""Numbers and tables in Markdown, as all reports of runs write them."""

from __future__ import annotations

from collections.abc import Sequence

from q8core.reproduce.data import TITLES
from q8core.reproduce.record import RunRecord
from q8core.reproduce.summary import Cell

METRIC_TITLES = {
    "mcc": "MCC",
    "f1": "F1",
    "accuracy": "accuracy",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "exact_match": "EM",
}
_MINUS = "\N{MINUS SIGN}"


def signed(value: float | None, digits: int = 2) -> str:
    """Return a relative error with a sign, as in the paper."""
    if value is None:
        return "undefined"
    text = f"{abs(value):.{digits}f} %"
    return text if float(f"{value:.{digits}f}") == 0 else (_MINUS if value < 0 else "+") + text


def markdown_table(lines: Sequence[tuple[str, ...]]) -> str:
    """Return a table of Markdown; its first line is the head."""
    head, *body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join((head, "|---" * len(lines[0]) + "|", *body))


def score_text(cell: Cell | None) -> str:
    """Return mean and deviation; a dash without scores."""
    if cell is None:
        return "-"
    return f"{cell.mean:.2f}" + ("" if cell.deviation is None else f" ({cell.deviation:.2f})")


def relative_text(cell: Cell | None) -> str:
    """Return the relative error; a dash without scores."""
    return "-" if cell is None else signed(cell.relative)


def with_relative(cell: Cell | None, fp32: Cell | None) -> str:
    """Return mean, deviation and relative error, and the number of seeds if it is not that of fp32."""
    if cell is None:
        return "-"
    fewer = "" if fp32 is None or cell.seeds == fp32.seeds else f", {cell.seeds} seeds"
    return f"{score_text(cell)}, {signed(cell.relative)}{fewer}"


def failures_text(records: Sequence[RunRecord]) -> str:
    """Return a section with the errors of all runs, empty if there are none."""
    lines = [
        f"- **{TITLES[record.task]}, seed {record.seed}**, {method}: {' '.join(error.split())}"
        for record in records
        for method, error in record.errors.items()
    ]
    return "\n".join(("## Failed", *lines)) if lines else ""
