"""A picture of a run: for each workload, every contender's throughput as a multiple of the reference's.

int8 and fp32 differ in brightness and hatching, so that the picture can be read without colours. matplotlib is an extra
(`plot`), imported by name and used without its global state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from textwrap import wrap
from typing import Any, cast

from q8core.bench.panels import Bar, Panel, label_of, panel_rows, reference_of
from q8core.bench.timing import Timing
from q8core.errors import InputError

_DPI = 200
# In inches.
_PANEL_WIDTH, _LEAST_WIDTH, _LABELS_WIDTH, _BAR_HEIGHT = 2.3, 6.0, 1.5, 0.21
_TITLE_HEIGHT, _LINE_HEIGHT, _FOOTER_HEIGHT = 0.6, 0.15, 0.55
_FILLS = {
    False: {"facecolor": "#f4d9a8", "edgecolor": "black", "hatch": "////", "linewidth": 0.7},
    True: {"facecolor": "#1f4e79", "edgecolor": "black", "linewidth": 0.7},
}
_FLOOR_LINES = {False: (0, (5, 3)), True: (0, (1, 1.5))}
_FLOOR = {"color": "black", "linewidth": 1.1}
_PRECISIONS = {False: "fp32", True: "int8"}
_LETTERS = 17
"""Letters of the subtitle per inch."""

_GAP = 0.6
"""Gap between fp32 and int8, in bar heights."""

_NEAR = 0.3
"""Distance of a floor from a bar's end, as a share of the longest bar, below which the bar's number would cover it."""


def check_plot(file: Path) -> None:
    """Check that a picture can be drawn to this file, before anything is measured.

    Raises:
        InputError: if matplotlib is not installed, the file's ending is not .png, or its folder does not exist.
    """
    if file.suffix.lower() != ".png":
        raise InputError(f"--plot {file}: the picture is a PNG; name a file that ends in .png")
    if not file.parent.is_dir():
        raise InputError(f"--plot {file}: the folder {file.parent} does not exist")
    if find_spec("matplotlib") is None:
        raise InputError("--plot needs matplotlib: pip install 'q8bert[plot]'")


def subtitle_of(environment: Mapping[str, object], versions: Mapping[str, str], what: str) -> tuple[str, ...]:
    """Return lines about the measurement: CPU, packages, contenders.

    Args:
        environment: from `environment()`.
        versions: package -> version, besides torch and transformers.
        what: text at the end.
    """
    flags = " ".join(cast("list[str]", environment["cpu_flags"])) or "none of the int8 flags"
    names = {"torch": environment["torch"], "transformers": environment["transformers"], **versions}
    packages = ", ".join(f"{name} {version}" for name, version in names.items())
    return (f"{environment['cpu']} ({environment['cpus']} CPUs usable), {flags}", f"{packages}; {what}")


def plot_run(timings: Sequence[Timing], title: str, subtitle: Sequence[str], file: Path) -> None:
    """Draw the timings into a PNG.

    Args:
        timings: timings of one run, in the order taken; at least one.
        title: the first line above the panels.
        subtitle: the lines below it about what was measured; long ones are wrapped.
        file: the file to write; replaced if it exists.
    """
    draw_run(timings, title, subtitle).savefig(file, format="png")


def draw_run(timings: Sequence[Timing], title: str, subtitle: Sequence[str]) -> Any:
    """Return the matplotlib figure that `plot_run` writes."""
    rows = panel_rows(timings)
    panels = [panel for row in rows for panel in row]
    columns, bars = max(map(len, rows)), max(len(panel.bars) for panel in panels)
    width = _LABELS_WIDTH + max(columns * _PANEL_WIDTH, _LEAST_WIDTH)
    unit = f"Throughput, times that of {label_of(reference_of(timings))}, and median time of a round"
    lines = [part for line in (*subtitle, unit) for part in wrap(line, int(width * _LETTERS))]
    header = 0.4 + _LINE_HEIGHT * len(lines)
    height = header + _FOOTER_HEIGHT + len(rows) * (_TITLE_HEIGHT + (bars + 2 * _GAP) * _BAR_HEIGHT)
    figure = import_module("matplotlib.figure").Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - header / height), w_pad=0.06, h_pad=0.06)
    figure.text(0.1 / width, 1 - 0.1 / height, title, fontsize=11, fontweight="bold", va="top")
    figure.text(0.1 / width, 1 - 0.36 / height, "\n".join(lines), fontsize=7.5, va="top", linespacing=1.35)
    axes: Any = figure.subplots(len(rows), columns, squeeze=False)
    several = len({panel.group for panel in panels}) > 1
    furthest = max(panel.furthest for panel in panels)
    for row, places in zip(rows, axes, strict=True):
        for panel, place in zip(row, places, strict=False):
            _draw(place, panel, furthest, names=panel is row[0])
            place.set_title(f"{panel.group}\n{panel.workload}" if several else panel.workload, fontsize=9)
        for unused in places[len(row) :]:
            unused.remove()
    _explain(figure, panels)
    return figure


def _draw(axes: Any, panel: Panel, furthest: float, *, names: bool) -> None:
    """Draw a workload: bars from top to bottom, and each floor as a line across the bars of its precision."""
    places = [number + _GAP * bar.int8 for number, bar in enumerate(panel.bars)]
    for int8, ratio in panel.floors.items():
        own = [place for place, bar in zip(places, panel.bars, strict=True) if bar.int8 == int8]
        axes.vlines(ratio, own[0] - 0.5, own[-1] + 0.5, **_FLOOR, linestyle=_FLOOR_LINES[int8], zorder=1)
    for place, bar in zip(places, panel.bars, strict=True):
        axes.barh(place, bar.ratio.median, height=0.78, zorder=2, **_FILLS[bar.int8])
        _draw_quartiles(axes, place, bar)
        end, floor = bar.ratio.high, panel.floors.get(bar.int8, 0.0)
        if 0 < floor - end < _NEAR * furthest:
            end = floor  # put the number behind the line, not on it
        text = f"{bar.ratio.median:.2f}  ({_time(bar.milliseconds)})"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        axes.text(end + 0.025 * furthest, place, text, va="center", fontsize=7, zorder=4, bbox=box)
    axes.set_xlim(0, 1.6 * furthest)  # room for the numbers
    axes.set_ylim(places[-1] + _GAP, places[0] - _GAP)
    axes.set_yticks(places, [bar.label for bar in panel.bars] if names else [""] * len(places), fontsize=8)
    for label, bar in zip(axes.get_yticklabels(), panel.bars, strict=True):
        label.set_fontweight("bold" if bar.ours else "normal")
    axes.tick_params(axis="x", labelsize=7)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_quartiles(axes: Any, place: float, bar: Bar) -> None:
    """Draw the quartiles in black on white, which is visible on both fills."""
    median, low, high = bar.ratio
    if low == high:
        return
    for colour, width in (("white", 2.6), ("black", 1.1)):
        style = {"ecolor": colour, "elinewidth": width, "capthick": width, "capsize": 2.2}
        axes.errorbar(median, place, xerr=[[median - low], [high - median]], fmt="none", zorder=3, **style)


def _explain(figure: Any, panels: Sequence[Panel]) -> None:
    """Add a legend of the colours and lines in use."""
    patches, lines = import_module("matplotlib.patches"), import_module("matplotlib.lines")
    handles: list[Any] = []
    for int8, name in _PRECISIONS.items():
        if any(bar.int8 == int8 for panel in panels for bar in panel.bars):
            handles.append(patches.Patch(label=name, **_FILLS[int8]))
    for int8, name in _PRECISIONS.items():
        if any(int8 in panel.floors for panel in panels):
            label = f"floor: {name} matrix products alone"
            handles.append(lines.Line2D([], [], **_FLOOR, linestyle=_FLOOR_LINES[int8], label=label))
    if any(bar.ratio.low < bar.ratio.high for panel in panels for bar in panel.bars):
        handles.append(lines.Line2D([], [], **_FLOOR, marker="|", label="quartiles of the rounds"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=7.5, frameon=False)


def _time(milliseconds: float) -> str:
    """Return a time with about three digits."""
    if milliseconds < 10:
        return f"{milliseconds:.1f} ms"
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.2f} s"
