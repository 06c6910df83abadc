"""The picture of `--schemes`: for each task, the score of each scheme over the size of its file.

In the style of the other pictures: what differs differs in brightness and shape too, so that it can be read without
colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from textwrap import wrap
from typing import Any

from q8core.bench.plot import subtitle_of
from q8core.reproduce.cells import METRIC_TITLES
from q8core.reproduce.data import TITLES
from q8core.reproduce.record import FP32
from q8core.reproduce.scheme_summary import SchemeLine
from q8core.reproduce.summary import metrics_of

_DPI = 200
# In inches.
_WIDTH, _PANEL_HEIGHT, _HEADER = 7.5, 3.0, 0.95
_LETTERS = 15
_POINT = {"marker": "o", "markersize": 5, "markerfacecolor": "#1f4e79", "markeredgecolor": "black", "linestyle": "none"}


def plot_schemes(
    lines: Mapping[str, Sequence[SchemeLine]], base: str, environment: Mapping[str, object], file: Path
) -> None:
    """Draw the tasks that have lines into a PNG; the file is replaced if it exists."""
    part = file.with_name(f"{file.name}.part")
    draw_schemes({task: own for task, own in lines.items() if own}, base, environment).savefig(part, format="png")
    part.replace(file)


def draw_schemes(lines: Mapping[str, Sequence[SchemeLine]], base: str, environment: Mapping[str, object]) -> Any:
    """Return the matplotlib figure that `plot_schemes` writes."""
    height = _HEADER + len(lines) * _PANEL_HEIGHT
    figure = import_module("matplotlib.figure").Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - _HEADER / height), w_pad=0.06, h_pad=0.06)
    title = f"{base}: score as executed, over the size of the weights' file"
    text = subtitle_of(environment, {}, "whiskers: standard deviation over seeds; dashed: fp32")
    wrapped = "\n".join(part for line in text for part in wrap(line, int(_WIDTH * _LETTERS)))
    figure.text(0.1 / _WIDTH, 1 - 0.1 / height, title, fontsize=11, fontweight="bold", va="top")
    figure.text(0.1 / _WIDTH, 1 - 0.36 / height, wrapped, fontsize=7.5, va="top", linespacing=1.35)
    panels = figure.subplots(len(lines), 1, squeeze=False)[:, 0]
    for axes, own in zip(panels, lines.values(), strict=True):
        _draw(axes, own)
    return figure


def _draw(axes: Any, lines: Sequence[SchemeLine]) -> None:
    axes.set_xscale("log")
    for number, line in enumerate(sorted(lines, key=lambda line: line.file_bytes)):
        size, cell = line.file_bytes / 1e6, line.cell
        if line.scheme == FP32:
            axes.axhline(cell.mean, color="black", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        style = {"ecolor": "black", "elinewidth": 1.0, "capsize": 2.5}
        axes.errorbar([size], [cell.mean], yerr=cell.deviation or 0.0, zorder=3, **_POINT, **style)
        # names of neighbours stand above and below in turns, or those of like sizes would cover each other
        above = number % 2 == 0
        offset, side = ((0, 7), "bottom") if above else ((0, -7), "top")
        end = cell.mean + (cell.deviation or 0.0) * (1 if above else -1)
        axes.annotate(
            f"{line.scheme}\n{line.bits}", (size, end), offset, textcoords="offset points", ha="center", va=side,
            fontsize=6.5,
        )  # fmt: skip
    axes.margins(x=0.12, y=0.3)
    task, seeds = lines[0].task, max(line.cell.seeds for line in lines)
    axes.set_title(f"{TITLES[task]}, {seeds} seed{'s' if seeds > 1 else ''}", fontsize=9)
    axes.set_ylabel(f"{METRIC_TITLES[metrics_of(task)[0]]}, percent", fontsize=7.5)
    axes.set_xlabel("MB, logarithmic", fontsize=7.5)
    ticks = import_module("matplotlib.ticker")
    axes.xaxis.set_major_formatter(ticks.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(ticks.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.tick_params(labelsize=7, which="both")
    axes.spines[["top", "right"]].set_visible(False)
