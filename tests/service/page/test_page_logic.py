"""The page's own logic, run by Node where it is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.http.routes.page import FOLDER
from service.second_opinion.compare import BACKENDS

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")


def run(module: str, script: str, data: object = None) -> Any:
    """Run statements that return a value, with the module as ``m`` and the data as ``data``."""
    # outside of a browser, Node takes .js files for modules where a package.json says so
    with TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(FOLDER, Path(folder) / "page"))
        (copy / "package.json").write_text('{"type": "module"}')
        return json.loads(_run_node(copy / module, script, data))


def _run_node(module: Path, script: str, data: object) -> str:
    assert NODE is not None
    source = f"""
      import {{ readFileSync }} from "node:fs";
      const m = await import({json.dumps(module.as_uri())});
      const data = JSON.parse(readFileSync(0, "utf-8"));
      console.log(JSON.stringify(await (async () => {{ {script} }})()));
    """
    done = subprocess.run(
        [NODE, "--input-type=module", "--eval", source],
        input=json.dumps(data),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_counters_are_those_of_the_service(client: TestClient) -> None:
    def read() -> dict[str, dict[str, float]]:
        return run("metrics.js", "return m.readCounters(data)", client.get("/metrics").text)

    before = read()
    for body in ({"inputs": "good"}, {"question": "who?", "context": "ada"}):
        assert client.post("/compare", json=body).status_code == 200
    assert client.post("/classify", json={"inputs": "good", "backend": "int8"}).status_code == 200
    after = read()
    assert {b: after[b]["count"] - before[b]["count"] for b in after} == {"fp32": 2, "int8": 3}
    assert all(after[b]["sum"] > before[b]["sum"] for b in after)


def counters(fp32: tuple[int, float], int8: tuple[int, float]) -> dict[str, dict[str, float]]:
    return {"fp32": {"count": fp32[0], "sum": fp32[1]}, "int8": {"count": int8[0], "sum": int8[1]}}


HISTORY = """
  const history = new m.History();
  for (const [time, counters] of data) counters ? history.add(time, counters) : history.interrupt(time);
  return { points: history.points, traffic: history.hasTraffic };
"""


def test_rates_and_latencies_are_differences_over_ten_seconds() -> None:
    samples = [(1000 * t, counters((100 + t, 5 + t * 0.02), (7, 0.5))) for t in range(0, 31, 2)]
    found = run("metrics.js", HISTORY, samples)
    assert found["traffic"]
    assert [point["time"] for point in found["points"]] == [1000 * t for t in range(2, 31, 2)]
    for point in found["points"]:
        assert point["rate"] == {"fp32": pytest.approx(1), "int8": 0}
        assert point["latency"] == {"fp32": pytest.approx(20)}  # none of int8: it answered nothing


def test_no_traffic_is_not_traffic_before_somebody_looked() -> None:
    assert not run("metrics.js", HISTORY, [(0, counters((5, 1), (5, 1))), (2000, counters((5, 1), (5, 1)))])["traffic"]


def test_a_restart_and_a_silence_leave_no_spike() -> None:
    low, high = counters((1, 0.1), (1, 0.1)), counters((900, 9), (900, 9))
    restarted = run("metrics.js", HISTORY, [(0, high), (2000, high), (4000, low), (6000, low)])
    assert all(point["rate"]["fp32"] == 0 for point in restarted["points"])
    silent = run("metrics.js", HISTORY, [(0, low), (2000, None), (90_000, high), (92_000, high)])
    assert [point["rate"] for point in silent["points"]] == [{}, {"fp32": 0, "int8": 0}]


def test_old_points_are_forgotten() -> None:
    samples = [(2000 * n, counters((n, n), (n, n))) for n in range(1000)]
    points = run("metrics.js", HISTORY, samples)["points"]
    assert points[-1]["time"] - points[0]["time"] == 5 * 60_000


@pytest.mark.parametrize("text", ["😀 ada 👩‍👩‍👧 é e\u0301", "آدا 😀 في باريس", "plain"])
def test_offsets_are_code_points(text: str) -> None:
    cuts = [(start, end) for start in range(len(text)) for end in range(start, len(text) + 1)]
    script = "return data.cuts.map(([start, end]) => m.cutByCodePoints(data.text, start, end))"
    found = run("results.js", script, {"text": text, "cuts": cuts})
    assert found == [[text[:start], text[start:end], text[end:]] for start, end in cuts]


def test_words_about_ratios_and_lengths() -> None:
    words = "return data.map((r) => m.ratioWords(r, 'faster', 'slower', 'as fast'))"
    assert run("results.js", words, [4.04, 1.2, 1.01, 0.99, 0.5]) == [
        "4× faster", "1.2× faster", "as fast", "as fast", "2× slower",
    ]  # fmt: skip
    reading = "return data.map(([task, r]) => m.readingWords(task, r))"
    cases = [
        ("classify", {"tokens": 1, "truncated": 0, "windows": 0}),
        ("classify", {"tokens": 128, "truncated": 1, "windows": 0}),
        ("qa", {"tokens": 800, "truncated": 0, "windows": 3}),
    ]
    assert run("results.js", reading, cases) == [
        "1 token.",
        "128 tokens. The text is longer than the model reads: its end was cut off.",
        "800 tokens in 3 windows.",
    ]


def test_axes_end_at_round_numbers_above_the_data() -> None:
    values = [0, 0.03, 0.2, 1, 1.01, 9, 99, 101, 12345]
    assert run("chart.js", "return data.map(m.niceCeiling)", values) == pytest.approx(
        [1, 0.05, 0.2, 1, 2, 10, 100, 200, 20000]
    )


def comparison(fp32: float, int8: float) -> dict[str, Any]:
    results = {
        backend: {"answer": backend, "queue_ms": ms / 10, "inference_ms": ms}
        for backend, ms in zip(BACKENDS, (fp32, int8), strict=True)
    }
    return {"task": "classify", "agree": True, "speedup": fp32 / int8, "results": results}


def test_times_are_medians() -> None:
    times = [(10, 90), (20, 4), (31, 6), (12, 5), (900, 7)]
    found = run("repeats.js", "return m.withMedianTimes(data)", [comparison(*pair) for pair in times])
    fp32, int8 = (median(each) for each in zip(*times, strict=True))
    assert found == {**comparison(fp32, int8), "comparisons": 5}
    assert run("repeats.js", "return m.withMedianTimes(data)", [comparison(3, 2), comparison(5, 2)])["speedup"] == 2
    words = run("results.js", "return data.map((n) => m.repeatsWords(n))", [1, 5])
    assert words[0].startswith("One comparison is a noisy measurement")
    assert words[1] == "Times are medians of 5 comparisons."


def test_a_number_is_shown_as_such() -> None:
    assert run("results.js", "return data.map(m.plainNumber)", [4.9031234, -0.25, 1234567, 0.00004]) == [
        "4.9031", "-0.25", "1234600", "0.00004",
    ]  # fmt: skip
    answers = {b: {"answer": [[{"label": "LABEL_0", "score": score}]]} for b, score in (("fp32", 4.9), ("int8", 4.5))}
    found = {"task": "classify", "agree": None, "delta": {"abs_diff": 0.4}, "results": answers}
    script = "return [m.sentence(data).replace(/[\\u2068\\u2069]/g, ''), ...m.apartWords(data)]"
    assert run("results.js", script, found) == [
        "fp32 says “4.9”, int8 “4.5”.", "0.4", "difference of the two numbers",
    ]  # fmt: skip


def test_variants_are_told_by_their_names_and_coloured_by_their_backends() -> None:
    names = ["small@int8", "large@fp32"]
    shown = {name: {"answer": [[{"label": label, "score": 0.9}]]} for name, label in zip(names, "ab", strict=True)}
    found = {"task": "classify", "agree": False, "delta": {"max_abs_prob": 0.4}, "results": shown}
    script = "return m.sentence(data).replace(/[\\u2068\\u2069]/g, '')"
    assert run("results.js", script, found) == "They differ: small@int8 says “a”, large@fp32 “b”."
    colours = "return data.map((names) => names.map((name) => m.colourOf(name, names)))"
    pairs = [["fp32", "int8"], names, ["a@int8", "b@int8"], ["b@x@fp32", "a@fp32"]]
    assert run("results.js", colours, pairs) == [["fp32", "int8"], ["int8", "fp32"], ["fp32", "int8"], ["fp32", "int8"]]


def test_variants_of_a_task_are_its_models_on_their_backends() -> None:
    backends = {"fp32": {}, "int8": {}}
    models = {"one": ("classify", backends), "two": ("qa", backends), "three": ("classify", {"int8": {}})}
    info = {"models": {name: {"task": task, "backends": each} for name, (task, each) in models.items()}}
    found = run("variants.js", "return ['classify', 'qa', 'none'].map((task) => m.variantsOf(data, task))", info)
    assert found == [["one@fp32", "one@int8", "three@int8"], ["two@fp32", "two@int8"], []]


def test_asks_again_unless_refused_or_slow() -> None:
    script = """
      let now = 0; performance.now = () => now;
      const after = [];
      for (const { ms, answers } of data) {
        let asked = 0;
        const found = await m.compareRepeatedly(async (first) => {
          if (first !== (asked === 0)) throw new Error("first is wrong");
          now += ms; asked += 1;
          return asked <= answers.length ? answers[asked - 1] : null;
        });
        after.push([asked, found?.comparisons ?? null]);
      }
      return after;
    """
    some = [comparison(4, 2)] * 9
    cases = [
        {"ms": 10, "answers": some},
        {"ms": 700, "answers": some},
        {"ms": 2000, "answers": some},
        {"ms": 10, "answers": some[:2]},
        {"ms": 10, "answers": []},
    ]
    assert run("repeats.js", script, cases) == [[5, 5], [3, 3], [1, 1], [3, 2], [1, None]]
