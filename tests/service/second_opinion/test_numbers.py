"""A model that predicts a number: two of them are more or less apart, and never agree or disagree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.telemetry.shadow_metrics import RESULTS
from tests.service.client.test_client import in_front_of
from tests.service.http.test_compare_route import BACKENDS, TEXTS, ready
from tests.service.http.test_metrics_route import samples
from tests.service.second_opinion.test_replay import run, write_lines
from tests.service.second_opinion.test_shadow_service import serve, wait_until

INPUTS = [text for text in TEXTS if text]


def test_both_backends_side_by_side(number_folder: Path) -> None:
    with ready(number_folder) as (client, _):
        found = client.post("/compare", json={"inputs": "the film is good"}).json()
        ((fp32,), (int8,)) = (found["results"][backend]["answer"][0] for backend in BACKENDS)
        assert fp32["label"] == int8["label"] == "LABEL_0"
        assert (found["agree"], found["delta"]) == (None, {"abs_diff": abs(fp32["score"] - int8["score"])})
        assert found["delta"]["abs_diff"] > 0
        own = in_front_of(client).compare("the film is good")
        assert (own.agree, own.delta) == (None, found["delta"])


def test_live_and_recorded_requests_have_differences_alone(number_folder: Path, tmp_path: Path) -> None:
    with serve(number_folder) as running:
        for text in INPUTS:
            running.ask("/classify", inputs=text)
        wait_until(running.settled)
        (live,) = running.client.get("/agreement").json()["models"].values()
        metrics = samples(running.client)
    assert (live["compared"], live["agreed"], live["agreement"], live["agreement_ci95"]) == (len(INPUTS), *[None] * 3)
    assert {case["agree"] for case in live["worst"]} == {None}
    differences = [case["abs_diff"] for case in live["worst"]]
    assert differences == sorted(differences, reverse=True)
    assert live["abs_diff"]["max"] == differences[0] > 0
    labels = ("model", "tiny-classify"), ("task", "classify")
    assert metrics["q8bert_shadow_abs_diff_count", labels] == len(INPUTS)
    counts = [metrics["q8bert_shadow_comparisons_total", (labels[0], ("result", r), labels[1])] for r in RESULTS]
    assert counts == [0, 0]

    file = write_lines(tmp_path / "requests.jsonl", [{"inputs": text} for text in INPUTS])
    printed = run("--file", file, "--checkpoint", number_folder, "--json", tmp_path / "out.json")
    recorded = json.loads((tmp_path / "out.json").read_text())["tasks"]["classify"]
    assert (recorded["agreed"], recorded["abs_diff"]) == (None, pytest.approx(live["abs_diff"]))
    assert f"int8's numbers beside fp32's on {len(INPUTS)} inputs" in printed
    assert "agrees" not in printed
