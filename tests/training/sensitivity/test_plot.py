"""The picture of an analysis: nothing that is written in it overlaps, for few layers and for many."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from q8core.training.sensitivity.allocation import BITS, Matrix, by_budget
from q8core.training.sensitivity.measure import encoder_matrices
from q8core.training.sensitivity.plot import draw_sensitivity, plot_sensitivity
from q8core.training.sensitivity.record import Estimate, Measured
from q8core.training.sensitivity.report import Sensitivity, Wanted
from tests.conftest import tiny_config


def analysis(layers: int, subsets: int, sign: float = 1.0) -> Sensitivity:
    from q8core.checkpoint.config import parse_config

    spec = parse_config(tiny_config(100, num_hidden_layers=layers).to_dict(), "test").spec
    paths = encoder_matrices(spec)
    traces = {path: Estimate(sign * (-1.0) ** i * 3.7**-i, 0.01) for i, path in enumerate(paths)}
    matrices = [Matrix(path, 1024, one.mean, {bits: 4.0**-bits for bits in BITS}) for path, one in traces.items()]
    identity = {"model": "a-model", "examples": 128, "loss": "answers"}
    eigenvalues = [[float(i + subset) for i in range(layers)] for subset in range(subsets)]
    samples = [[[one.mean] * len(paths)] * 4 for one in traces.values()]
    measured = Measured(identity, paths, [[0]] * len(samples), samples, eigenvalues)
    wanted = Wanted(3.0)
    return Sensitivity(measured, traces, measured.omegas(), matrices, wanted, by_budget(matrices, 3.0))


@pytest.mark.parametrize(("layers", "subsets", "sign"), [(2, 3, 1.0), (6, 0, 1.0), (12, 3, -1.0), (24, 3, 0.0)])
def test_nothing_that_is_written_overlaps(layers: int, subsets: int, sign: float) -> None:
    pytest.importorskip("matplotlib")
    figure = draw_sensitivity(analysis(layers, subsets, sign))
    figure.draw_without_rendering()
    written = [*figure.texts]
    for axes in figure.axes:
        written += [axes.title, axes.xaxis.label, *axes.texts, *axes.get_yticklabels()]
    places = [(text.get_text(), text.get_window_extent()) for text in written if text.get_text()]
    assert len(places) > 12 * layers
    for text, place in places:
        assert figure.bbox.x0 <= place.x0 < place.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= place.y0 < place.y1 <= figure.bbox.y1, text
    for (one, first), (other, second) in combinations(places, 2):
        assert not first.overlaps(second), (one, other)


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot_sensitivity(analysis(2, 1), tmp_path / "it.png")
    assert (tmp_path / "it.png").read_bytes().startswith(b"\x89PNG")
