"""The Markdown table: these results beside the paper's, then every method and metric, then the failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from q8core.reproduce.cells import (
    METRIC_TITLES,
    failures_text,
    markdown_table,
    relative_text,
    score_text,
    signed,
    with_relative,
)
from q8core.reproduce.data import OFFICIAL, TITLES
from q8core.reproduce.methods import BASELINES
from q8core.reproduce.paper import PAPER, PaperRow, PaperScore
from q8core.reproduce.record import FP32, QAT, RunRecord
from q8core.reproduce.summary import Row, metrics_of, summarize

PAPER_DYNAMIC = "dynamic-paper"


@dataclass(frozen=True)
class Report:
    """The content of the table.

    Attributes:
        base: the base model's name.
        scheme: the scheme of the quantization-aware training.
        environment: the machine and versions.
        records: the records of all runs in the output folder.
        planned: number of planned runs.
    """

    base: str
    scheme: str
    environment: dict[str, Any]
    records: Sequence[RunRecord]
    planned: int


def markdown(report: Report) -> str:
    """Return the whole document."""
    rows = summarize(report.records)
    parts = [
        f"# {report.base}: fp32, QAT and baselines",
        _progress(report),
        "## Beside the paper",
        "Dev sets, in percent: mean (sample standard deviation) over the seeds, and the mean's relative error to fp32. "
        f"QAT (scheme `{report.scheme}`) and fp32 are executed, int8 on the integer engine; DQ, the paper's "
        "post-training dynamic quantization, is simulated. The lines marked *paper* are Q8BERT's own numbers (Zafrir "
        "et al., 2019), **of BERT-base or BERT-large, simulated**: another model than this one, so compare the "
        "relative errors, not the scores.",
        _paper_table(rows),
        "## All methods",
        "Mean (sample standard deviation), relative error to fp32.",
        _full_table(rows),
        _legend(),
        _data_notes(report.records),
        failures_text(report.records),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _progress(report: Report) -> str:
    counts = {name: sum(r.status == name for r in report.records) for name in ("finished", "failed", "unfinished")}
    done = ", ".join(f"{count} {name}" for name, count in counts.items() if count or name == "finished")
    machine = report.environment
    return (
        f"Runs: {done}; the last command asked for {report.planned}. {machine['cpu']} ({machine['cpus']} CPUs), torch "
        f"{machine['torch']}, transformers {machine['transformers']}. `results.json` beside this file has every run."
    )


def _paper_table(rows: Sequence[Row]) -> str:
    lines = [("task", "model", "metric", "seeds", "fp32", "QAT", "relative", "DQ", "relative")]
    for row in rows:
        if row.metric != metrics_of(row.task)[0]:
            continue
        title, metric = TITLES[row.task], METRIC_TITLES[row.metric]
        fp32, qat, dynamic = (row.cells.get(name) for name in (FP32, QAT, PAPER_DYNAMIC))
        ours = (score_text(fp32), score_text(qat), relative_text(qat), score_text(dynamic), relative_text(dynamic))
        lines.append((f"**{title}**", "this one", metric, _seeds(row), *ours))
        lines += [_paper_line(title, metric, paper) for paper in PAPER.get(row.task, ())]
    return markdown_table(lines)


def _paper_line(title: str, metric: str, paper: PaperRow) -> tuple[str, ...]:
    def against(score: PaperScore) -> str:
        return signed(100 * (score.mean - paper.fp32.mean) / paper.fp32.mean)

    fp32, qat, dynamic = (
        f"{score.mean:.2f} ({score.deviation:.2f})" for score in (paper.fp32, paper.qat, paper.dynamic)
    )
    return (
        title,
        f"*paper, {paper.model}*",
        metric,
        "5",
        fp32,
        qat,
        against(paper.qat),
        dynamic,
        against(paper.dynamic),
    )


def _full_table(rows: Sequence[Row]) -> str:
    titles = {FP32: "fp32", QAT: "QAT", **{name: method.title for name, method in BASELINES.items()}}
    lines: list[tuple[str, ...]] = [("task", "metric", "seeds", *titles.values())]
    for row in rows:
        cells = [score_text(row.cells.get(FP32))]
        cells += [with_relative(row.cells.get(name), row.cells.get(FP32)) for name in titles if name != FP32]
        lines.append((TITLES[row.task], METRIC_TITLES[row.metric], _seeds(row), *cells))
    return markdown_table(lines)


def _seeds(row: Row) -> str:
    return str(max((cell.seeds for cell in row.cells.values()), default=0))


def _legend() -> str:
    return "\n".join(f"- **{method.title}**: {method.about}." for method in BASELINES.values())


def _data_notes(records: Sequence[RunRecord]) -> str:
    """Return notes on data that differs from the public data set in its number of examples."""
    notes: list[str] = []
    for task, official in OFFICIAL.items():
        found = {(r.identity["data"]["train"], r.identity["data"]["dev"]) for r in records if r.task == task}
        notes += [
            f"- {TITLES[task]} was trained on {train:,} and scored on {dev:,} examples; the public data set has "
            f"{official[0]:,} and {official[1]:,}."
            for train, dev in sorted(found)
            if (train, dev) != official
        ]
    return "\n".join(("## Data", *notes)) if notes else ""
