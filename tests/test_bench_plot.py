"""The benchmark's picture: what it shows, and that it can be read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from typer.testing import CliRunner

from q8core.bench import models, plot
from q8core.bench.contender import CONTENDERS, STOCK
from q8core.bench.environment import environment
from q8core.bench.floor import FLOORS
from q8core.bench.panels import panel_rows
from q8core.bench.peers.registry import PEER_NAMES, peer_versions
from q8core.bench.plot import draw_run, plot_run, subtitle_of
from q8core.bench.timing import Timing
from q8core.cli import app
from q8core.errors import InputError

ALL = (*CONTENDERS, *PEER_NAMES, *FLOORS[False], *FLOORS[True])


def timings(
    names: Sequence[str], workloads: Sequence[str], threads: Sequence[int] = (2,), fastest: float = 1.0
) -> list[Timing]:
    """Every contender a little faster than the one before; the last is `fastest` ms in the first of three rounds."""
    return [
        Timing(
            "bert-base", workload, name, count, 100, tuple(fastest * 1.2**place * drift for drift in (1.0, 1.3, 0.9))
        )
        for count in threads
        for workload in workloads
        for place, name in zip(range(len(names) - 1, -1, -1), names, strict=True)
    ]


def timing(name: str, *milliseconds: float) -> Timing:
    return Timing("m", "8x128", name, 2, 100, milliseconds)


def test_a_panel_compares_throughputs_round_by_round() -> None:
    ((panel,),) = panel_rows(
        [
            timing("int8-native", 1.0, 2.0, 4.0),
            timing(STOCK, 3.0, 10.0, 8.0),
            timing("openvino-fp32", 1.0, 10.0, 2.0),
            timing("floor-fp32", 1.0, 5.0, 2.0),
            timing("floor-int8-onednn", 0.5, 1.0, 2.0),
            timing("floor-int8-native", 1.0, 2.0, 2.0),
        ]
    )
    assert (panel.group, panel.workload) == ("m, 2 threads", "8 \N{MULTIPLICATION SIGN} 128 tokens")
    assert [bar.label for bar in panel.bars] == ["transformers fp32", "openvino-fp32", "q8bert int8-native"]
    assert [(bar.int8, bar.ours) for bar in panel.bars] == [(False, False), (False, False), (True, True)]
    assert panel.bars[2].ratio == (3.0, 2.5, 4.0)  # of 3, 5 and 2
    assert panel.bars[2].milliseconds == 2.0
    assert panel.floors == {False: 3.0, True: 6.0}  # the faster int8 one


def test_without_stock_transformers_the_first_contender_is_the_reference() -> None:
    ((panel,),) = panel_rows([timing("fp32", 4.0), timing("int8-native", 1.0)])
    assert [bar.ratio.median for bar in panel.bars] == [1.0, 4.0]
    assert panel.floors == {}


def test_rows_are_about_equally_long_and_begin_anew_for_each_thread_count() -> None:
    rows = panel_rows(timings(("fp32",), [f"1x{n}" for n in range(1, 7)], (1, 2)))
    assert [len(row) for row in rows] == [3, 3, 3, 3]
    assert [row[0].group for row in rows] == ["bert-base, 1 thread"] * 2 + ["bert-base, 2 threads"] * 2
    assert [len(row) for row in panel_rows(timings(("fp32",), ["1x1", "1x2", "1x3", "1x4"]))] == [4]


def texts(figure: Any) -> list[tuple[str, Any]]:
    """All that is written in a picture, with its place."""
    figure.draw_without_rendering()
    legend = figure.legends[0].get_texts()
    written = [*figure.texts, *legend]
    for axes in figure.axes:
        ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
        shown = [label for place, label in ticks if place <= axes.get_xlim()[1]]
        written += [axes.title, *axes.texts, *shown, *axes.get_yticklabels()]
    return [(text.get_text(), text.get_window_extent()) for text in written if text.get_text()]


@pytest.mark.parametrize(
    ("names", "workloads", "threads"),
    [
        (ALL, ("1x32", "1x128", "8x128", "1x384", "sst2", "squad"), (2,)),
        (ALL, ("1x32", "1x128", "8x128", "1x384"), (1, 2)),
        ((*CONTENDERS, *FLOORS[False], *FLOORS[True]), ("1x128",), (1, 2, 16)),
        (("int8-native",), ("sst2",), (2,)),
    ],
)
@pytest.mark.parametrize("fastest", [0.01, 5.0, 900.0])
def test_nothing_that_is_written_overlaps(
    names: Sequence[str], workloads: Sequence[str], threads: Sequence[int], fastest: float
) -> None:
    pytest.importorskip("matplotlib")
    versions = dict.fromkeys(("onnxruntime", "openvino", "ctranslate2"), "2026.4.0")
    subtitle = subtitle_of(environment(), versions, "random weights, task qa, 15 rounds")
    figure = draw_run(timings(names, workloads, threads, fastest), "bert-base, 2 threads", subtitle)
    written = texts(figure)
    assert len(written) > 5
    for text, place in written:
        assert figure.bbox.x0 <= place.x0 < place.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= place.y0 < place.y1 <= figure.bbox.y1, text
    for (one, first), (other, second) in combinations(written, 2):
        assert not first.overlaps(second), (one, other)


def test_the_picture_is_a_png_of_twice_the_usual_resolution(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    file = tmp_path / "run.png"
    plot_run(timings(CONTENDERS, ("1x32",)), "title", ("subtitle",), file)
    assert file.read_bytes().startswith(b"\x89PNG")
    height, width, _ = image.imread(file).shape
    assert width >= 1400
    assert height >= 400


def test_what_it_was_measured_on_is_written() -> None:
    machine = environment()
    first, second = subtitle_of(machine, peer_versions(("torch-int8-dynamic", "int8-native")), "9 rounds")
    assert str(machine["cpu"]) in first
    assert second == f"torch {torch.__version__}, transformers {transformers.__version__}; 9 rounds"


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments], env={"COLUMNS": "200"})


def test_a_run_draws_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    tiny = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    monkeypatch.setitem(models._SIZES, "bert-base", {**tiny, "intermediate_size": 64})
    drawn: list[list[Timing]] = []
    monkeypatch.setattr(plot, "draw_run", lambda found, *words: drawn.append(found) or draw_run(found, *words))
    picture, report = tmp_path / "run.png", tmp_path / "run.json"
    arguments = ("--engine", "fp32", "--engine", "int8-onednn", "--shape", "1x8", "--repeats", "2")
    end = run(*arguments, "--plot", str(picture), "--json", str(report))
    assert end.exit_code == 0, end.exception
    assert picture.read_bytes().startswith(b"\x89PNG")
    (found,) = drawn
    assert [each.to_dict() for each in found] == json.loads(report.read_text())["timings"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot", "run.svg"], "--plot run.svg: the picture is a PNG; name a file that ends in .png"),
        (["--plot", "/nonexistent/run.png"], "the folder /nonexistent does not exist"),
        (["--plot", "run.png", "--memory"], "--plot draws speeds: leave out either --plot or --memory"),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_refused_before_any_work(arguments: list[str], message: str) -> None:
    end = run(*arguments)
    assert isinstance(end.exception, InputError)
    assert message in str(end.exception)


def test_a_missing_matplotlib_is_named_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    end = run("--plot", "run.png")
    assert isinstance(end.exception, InputError)
    assert str(end.exception) == "--plot needs matplotlib: pip install 'q8bert[plot]'"
