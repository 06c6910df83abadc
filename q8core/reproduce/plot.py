"""The picture of a table: each method's relative error to fp32 on each task, beside the paper's.

In the style of the benchmark's picture: methods differ in brightness and hatching, so that it can be read without
colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from textwrap import wrap
from typing import Any

from q8core.bench.plot import subtitle_of
from q8core.errors import InputError
from q8core.reproduce.cells import METRIC_TITLES, signed
from q8core.reproduce.data import TITLES
from q8core.reproduce.methods import BASELINES
from q8core.reproduce.paper import PAPER
from q8core.reproduce.record import QAT
from q8core.reproduce.summary import Cell, Row, metrics_of
from q8core.reproduce.table import PAPER_DYNAMIC

_DPI = 200
# In inches.
_WIDTH, _BAR_HEIGHT, _HEADER, _FOOTER = 8.5, 0.17, 0.95, 1.3
_GAP = 1.2
"""Gap between tasks, in bar heights."""
_LETTERS = 15
_EDGE = {"edgecolor": "black", "linewidth": 0.7}
_FILLS: dict[str, dict[str, Any]] = {
    QAT: {"facecolor": "#1f4e79", **_EDGE},
    "static-mse": {"facecolor": "#5b8fbf", **_EDGE},
    "static-percentile": {"facecolor": "#8fb4d6", "hatch": "....", **_EDGE},
    "static-max": {"facecolor": "#c3d7ea", "hatch": "....", **_EDGE},
    "dynamic": {"facecolor": "#f4d9a8", **_EDGE},
    "dynamic-torch": {"facecolor": "#f4d9a8", "hatch": "////", **_EDGE},
    PAPER_DYNAMIC: {"facecolor": "white", "hatch": "xxxx", **_EDGE},
}
_LEAST, _MOST = -12.0, 4.0
"""Limits of the axis: a method that fails completely must not flatten the others."""


def check_plot() -> None:
    """Check that a picture can be drawn, before anything is trained.

    Raises:
        InputError: if matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise InputError("--plot needs matplotlib: pip install 'q8bert[plot]', or leave it out with --no-plot")


def plot_errors(rows: Sequence[Row], base: str, environment: Mapping[str, object], file: Path) -> None:
    """Draw the rows of each task's first metric into a PNG; the file is replaced if it exists."""
    shown = [row for row in rows if row.metric == metrics_of(row.task)[0] and _bars(row)]
    part = file.with_name(f"{file.name}.part")
    draw_errors(shown, base, environment).savefig(part, format="png")
    part.replace(file)


def draw_errors(rows: Sequence[Row], base: str, environment: Mapping[str, object]) -> Any:
    """Return the matplotlib figure that `plot_errors` writes; each row must have a relative error."""
    count = sum(len(_bars(row)) + _GAP for row in rows)
    height = _HEADER + _FOOTER + count * _BAR_HEIGHT
    figure = import_module("matplotlib.figure").Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - _HEADER / height), w_pad=0.06, h_pad=0.06)
    title = f"{base}: relative error to fp32, mean over seeds"
    lines = subtitle_of(environment, {}, "whiskers: standard deviation over seeds")
    text = "\n".join(part for line in lines for part in wrap(line, int(_WIDTH * _LETTERS)))
    figure.text(0.1 / _WIDTH, 1 - 0.1 / height, title, fontsize=11, fontweight="bold", va="top")
    figure.text(0.1 / _WIDTH, 1 - 0.36 / height, text, fontsize=7.5, va="top", linespacing=1.35)
    axes = figure.subplots()
    place, ticks = 0.0, list[tuple[float, str]]()
    for row in rows:
        bars = _bars(row)
        ticks.append((place + (len(bars) - 1) / 2, _label(row)))
        for method, cell, error in bars:
            _draw(axes, place, row.task, method, cell, error)
            place += 1
        place += _GAP
    _frame(axes, place, ticks)
    _explain(figure, rows)
    return figure


def _bars(row: Row) -> list[tuple[str, Cell, float]]:
    """Return the methods of a row that have a relative error, in drawing order."""
    found = [(method, row.cells[method]) for method in _FILLS if method in row.cells]
    return [(method, cell, cell.relative) for method, cell in found if cell.relative is not None]


def _label(row: Row) -> str:
    seeds = row.cells[_bars(row)[0][0]].seeds
    return f"{TITLES[row.task]}\n{METRIC_TITLES[row.metric]}, {seeds} seed{'s' if seeds > 1 else ''}"


def _draw(axes: Any, place: float, task: str, method: str, cell: Cell, error: float) -> None:
    shown = min(max(error, _LEAST), _MOST)
    axes.barh(place, shown, height=0.8, zorder=2, **_FILLS[method])
    deviation = cell.relative_deviation
    if deviation is not None and shown == error:
        for colour, width in (("white", 2.6), ("black", 1.1)):
            style = {"ecolor": colour, "elinewidth": width, "capthick": width, "capsize": 2.0}
            axes.errorbar(error, place, xerr=deviation, fmt="none", zorder=3, **style)
    paper = _paper(task, method)
    if paper is not None:
        style = {"marker": "D", "markersize": 3.8, "markerfacecolor": "white", "markeredgecolor": "black"}
        axes.plot([max(paper, _LEAST)], [place], linestyle="none", zorder=4, **style)
    text = signed(error) + ("" if shown == error else " (off the axis)")
    axes.text(_MOST + 0.25, place, text, va="center", fontsize=6.5, clip_on=False)


def _paper(task: str, method: str) -> float | None:
    """Return the paper's relative error for BERT-base, None if it has no such task or method."""
    for row in PAPER.get(task, ()):
        if row.model == "BERT-base" and method in (QAT, PAPER_DYNAMIC):
            score = row.qat if method == QAT else row.dynamic
            return 100 * (score.mean - row.fp32.mean) / row.fp32.mean
    return None


def _frame(axes: Any, end: float, ticks: Sequence[tuple[float, str]]) -> None:
    axes.set_ylim(end - _GAP / 2, -_GAP)
    axes.set_xlim(_LEAST, _MOST)
    axes.axvline(0, color="black", linewidth=0.9, zorder=1)
    axes.axvline(-1, color="black", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axes.set_yticks([place for place, _ in ticks], [label for _, label in ticks], fontsize=7.5)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_xlabel("percent; dashed: 1 % below fp32", fontsize=7.5)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _explain(figure: Any, rows: Sequence[Row]) -> None:
    """Add a legend of the methods in use."""
    patches, lines = import_module("matplotlib.patches"), import_module("matplotlib.lines")
    drawn = {method for row in rows for method, _, _ in _bars(row)}
    titles = {QAT: "QAT", **{name: method.title for name, method in BASELINES.items()}}
    handles: list[Any] = [patches.Patch(label=titles[name], **fill) for name, fill in _FILLS.items() if name in drawn]
    if any(_paper(row.task, method) is not None for row in rows for method, _, _ in _bars(row)):
        style = {"marker": "D", "markersize": 4, "markerfacecolor": "white", "markeredgecolor": "black"}
        handles.append(lines.Line2D([], [], linestyle="none", label="the paper's, BERT-base, simulated", **style))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=7, frameon=False)
