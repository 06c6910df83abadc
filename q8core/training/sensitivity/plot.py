"""The picture of an analysis: curvature and bits of each matrix, and the eigenvalues of each layer, in rows of layers.

Shades say the same as the numbers in them, so that it can be read without colours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from textwrap import wrap
from typing import Any

from q8core.model.sites import LAYER_LINEARS
from q8core.training.sensitivity.allocation import BITS
from q8core.training.sensitivity.report import Sensitivity

_DPI = 200
# In inches.
_WIDTH, _ROW_HEIGHT, _HEADER, _FOOTER = 8.5, 0.24, 0.8, 1.25
_LETTERS = 15
"""Letters of the subtitle per inch."""
_DARK = "#1f4e79"
_COLUMNS = {
    "query": "query",
    "key": "key",
    "value": "value",
    "attention_output": "output",
    "ffn_in": "FFN in",
    "ffn_out": "FFN out",
}


def plot_sensitivity(found: Sensitivity, file: Path) -> None:
    """Draw the analysis into a PNG; the file is replaced if it exists."""
    draw_sensitivity(found).savefig(file, format="png")


def draw_sensitivity(found: Sensitivity) -> Any:
    """Return the matplotlib figure that `plot_sensitivity` writes."""
    layers = found.layers()
    height = _HEADER + _FOOTER + len(layers) * _ROW_HEIGHT
    figure = import_module("matplotlib.figure").Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - _HEADER / height), w_pad=0.06, h_pad=0.06)
    title, lines = _title(found)
    text = "\n".join(part for line in lines for part in wrap(line, int(_WIDTH * _LETTERS)))
    figure.text(0.1 / _WIDTH, 1 - 0.1 / height, title, fontsize=11, fontweight="bold", va="top")
    figure.text(0.1 / _WIDTH, 1 - 0.36 / height, text, fontsize=7.5, va="top", linespacing=1.35)
    ratios = [6, 6, 3] if found.omegas else [6, 6]
    axes = figure.subplots(1, len(ratios), width_ratios=ratios)
    _draw_curvatures(axes[0], [[one.trace / one.size for one in layer] for layer in layers])
    bits = [[found.bits[one.path] for one in layer] for layer in layers]
    shades = [[BITS.index(each) / len(BITS) for each in row] for row in bits]
    _draw_grid(axes[1], shades, [[str(each) for each in row] for row in bits])
    axes[1].set_title(f"bits: {found.average:.2f} on average", fontsize=9)
    if found.omegas:
        _draw_eigenvalues(axes[2], found)
    for place in axes:
        place.set_ylim(len(layers) - 0.5, -0.5)
        names = [f"layer {layer}" for layer in range(len(layers))] if place is axes[0] else [""] * len(layers)
        place.set_yticks(range(len(layers)), names, fontsize=7.5)
        place.tick_params(axis="both", length=0)
        place.spines[:].set_visible(False)
    return figure


def _title(found: Sensitivity) -> tuple[str, tuple[str, ...]]:
    identity, wanted = found.measured.identity, found.wanted
    how = f"{wanted.method}, reversed as a control" if wanted.reverse else wanted.method
    uniform, cost = found.uniform()
    measured = (
        f"loss: {identity['loss']}; {identity['examples']} examples, {found.measured.probes} probes, "
        f"standard error of the largest trace {found.measured.relative_error:.0%}"
    )
    costs = (
        f"bits by {how}; loss + {found.cost:.3g} in second order, with {uniform} bits everywhere + {cost:.3g}; "
        f"base {wanted.base}"
    )
    return f"{identity['model']}: sensitivity of the encoder's matrices", (measured, costs)


def _draw_curvatures(axes: Any, values: Sequence[Sequence[float]]) -> None:
    """Draw trace / size on a scale of logarithms; what is negative stays white."""
    positive = [value for row in values for value in row if value > 0]
    low, high = (math.log(end) for end in (min(positive), max(positive))) if positive else (0.0, 1.0)
    shades = [
        [0.1 + 0.9 * (math.log(value) - low) / ((high - low) or 1.0) if value > 0 else 0.0 for value in row]
        for row in values
    ]
    largest = max((abs(value) for row in values for value in row), default=0.0)
    power = math.floor(math.log10(largest)) - 1 if largest else 0
    _draw_grid(axes, shades, [[f"{value / 10**power:.2g}" if value else "0" for value in row] for row in values])
    axes.set_title(f"Hessian trace / size, $10^{{{power}}}$", fontsize=9)


def _draw_grid(axes: Any, shades: Sequence[Sequence[float]], texts: Sequence[Sequence[str]]) -> None:
    """Draw cells with their texts, a shade of 0 in white and of 1 in the darkest colour."""
    colours = import_module("matplotlib.colors").LinearSegmentedColormap.from_list("shades", ["white", _DARK])
    axes.imshow(shades, cmap=colours, vmin=0, vmax=1, aspect="auto")
    for row, (dark, written) in enumerate(zip(shades, texts, strict=True)):
        for column, (shade, text) in enumerate(zip(dark, written, strict=True)):
            colour = "white" if shade > 0.5 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(_COLUMNS)), [_COLUMNS[slot] for slot in LAYER_LINEARS], fontsize=7, rotation=30)


def _draw_eigenvalues(axes: Any, found: Sensitivity) -> None:
    """Draw each layer's omega as a bar, and the eigenvalue of each subset as a dot."""
    places = range(len(found.omegas))
    axes.barh(places, found.omegas, height=0.7, facecolor="#c3d7ea", edgecolor="black", linewidth=0.7)
    style = {"marker": "o", "markersize": 2.6, "markerfacecolor": "white", "markeredgecolor": "black"}
    for values in found.measured.eigenvalues:
        axes.plot([abs(value) for value in values], places, linestyle="none", markeredgewidth=0.7, **style)
    axes.axvline(0, color="black", linewidth=0.9)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_title("top eigenvalue", fontsize=9)
    axes.set_xlabel("bar: |mean| + deviation;\ndots: random subsets", fontsize=7)
