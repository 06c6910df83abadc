"""A picture of a load test: every request's latency over time, and the percentiles.

Outcomes differ in brightness and marker, so that the picture can be read without colours. matplotlib is an extra
(`plot`), imported by name and used without its global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from service.loadtest.load import OK, Load, Sample
from service.loadtest.summary import Summary

_DPI = 160
_SIZE = (9.0, 6.6)
"""Inches."""
_STYLES = {
    "answered": {"color": "#1f4e79", "marker": "."},
    "refused": {"color": "#e08e0b", "marker": "x"},
    "failed": {"color": "#b3261e", "marker": "v"},
}
_DOTS = 20_000
"""Most dots of each outcome; more would only overlap."""
_NINES = (50.0, 90.0, 99.0, 99.9, 99.99)


def plot_load(samples: Sequence[Sample], summary: Summary, load: Load, title: str, file: Path) -> None:
    """Draw a load test into a PNG; the file is replaced if it exists."""
    draw_load(samples, summary, load, title).savefig(file, format="png")


def draw_load(samples: Sequence[Sample], summary: Summary, load: Load, title: str) -> Any:
    """Return the matplotlib figure that `plot_load` writes."""
    figure = import_module("matplotlib.figure").Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
    over_time, by_rank = figure.subplots(2, 1, height_ratios=(3, 2))
    groups = _group(samples)
    _draw_course(over_time, groups, summary, load)
    _draw_percentiles(by_rank, groups, load)
    for axes in (over_time, by_rank):
        axes.set_yscale("log")
        axes.set_ylabel("latency, ms", fontsize=8)
        for place in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            place(_milliseconds)
        axes.tick_params(which="both", labelsize=7)
        axes.grid(axis="y", which="both", linewidth=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _group(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = {kind: [] for kind in _STYLES}
    for sample in samples:
        groups[_kind(sample.outcome)].append(sample)
    return {kind: own for kind, own in groups.items() if own}


def _kind(outcome: str) -> str:
    if outcome == OK:
        return "answered"
    return "refused" if outcome.startswith("4") else "failed"


def _draw_course(axes: Any, groups: dict[str, list[Sample]], summary: Summary, load: Load) -> None:
    """Draw a dot for each request at its intended time, and a line through each second's median."""
    for kind, own in groups.items():
        shown = own[:: len(own) // _DOTS + 1]
        label = f"{kind} ({len(own)})"
        axes.scatter([s.intended for s in shown], [_ms(s) for s in shown], s=7, alpha=0.5, label=label, **_STYLES[kind])
    medians = [(one.second + 0.5, one.p50_ms) for one in summary.per_second if one.p50_ms is not None]
    if medians:
        axes.plot(*zip(*medians, strict=True), color="black", linewidth=1.2, label="median of each second")
    if load.warmup_s:
        axes.axvspan(0, load.warmup_s, color="#e6e6e6", zorder=0, label="warm-up, not counted")
    axes.set_xlim(0, load.total_s)
    axes.set_xlabel("seconds; a request stands where it was meant to be sent", fontsize=8)
    axes.legend(fontsize=7, frameon=False, ncols=5, loc="lower left", bbox_to_anchor=(0, 1))


def _draw_percentiles(axes: Any, groups: dict[str, list[Sample]], load: Load) -> None:
    """Draw latency over rank, on an axis where each nine of a percentile has the same width."""
    longest = 1
    for kind, own in groups.items():
        values = sorted(_ms(sample) for sample in own if sample.intended >= load.warmup_s)
        longest = max(longest, len(values))
        # the rank's distance from the end: 1 / (1 - quantile)
        places = [len(values) / (len(values) - rank) for rank in range(len(values))]
        axes.step(places, values, where="post", color=_STYLES[kind]["color"], label=kind)
    ticks = [100 / (100 - p) for p in _NINES]
    axes.set_xscale("log")
    axes.set_xlim(1, max(longest, 10))
    axes.set_xticks(ticks, [f"{p:g} %" for p in _NINES], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("share of the requests that took no longer", fontsize=8)


def _milliseconds(value: float, _: int) -> str:
    """Return a label for 1, 2 and 5 of each decade, and nothing for other ticks."""
    return f"{value:g}" if f"{value:e}"[0] in "125" else ""


def _ms(sample: Sample) -> float:
    return max(sample.finished - sample.intended, 1e-5) * 1000
