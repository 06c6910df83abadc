"""The threshold of `backend=auto`: its choice, its file, and the answers it leads to."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from q8core.errors import InputError
from service.core import Service
from service.http.app import create_app
from service.lifecycle import State
from service.second_opinion.cascade import Calibration, Cascade, calibrate, choose_threshold, write_calibrations
from service.settings import Settings
from tests.service.conftest import open_registry
from tests.service.http.test_metrics_route import samples
from tests.service.running import wait_until

TEXTS = [
    "the film is good",
    "bad",
    "! where good 2 b wrote",
    "not a good book",
    "who wrote it",
    "it was very bad in paris",
    "good good bad",
]
CONTEXTS = ["The book is very good. It was written by Ada in Paris.", "it was ada. " * 30, "ada wrote in paris"]
observed = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40)


def agreement_with(threshold: float, pairs: list[tuple[float, bool]]) -> Fraction:
    """By definition: what is under the threshold is answered by fp32, and so agrees."""
    return Fraction(sum(margin < threshold or agree for margin, agree in pairs), len(pairs))


@given(observed, st.floats(0.01, 1))
def test_the_threshold_reaches_the_target_and_no_smaller_one_does(
    pairs: list[tuple[float, bool]], target: float
) -> None:
    margins, agree = [m for m, _ in pairs], [a for _, a in pairs]
    threshold = choose_threshold(margins, agree, target)
    assert float(agreement_with(threshold, pairs)) >= target
    # agreement grows with the threshold and changes only just above an observed margin
    smaller = [0.0, *(math.nextafter(m, math.inf) for m in margins)]
    for other in smaller:
        if other < threshold:
            assert float(agreement_with(other, pairs)) < target


@pytest.mark.parametrize("total", [10, 49, 100, 1000, 3000])
@pytest.mark.parametrize("target", [0.9, 0.95, 0.99, 0.999, 1.0])
def test_round_targets_are_counted_exactly(total: int, target: float) -> None:
    agree = [n >= total // 2 for n in range(total)]
    margins = [n / total for n in range(total)]
    threshold = choose_threshold(margins, agree, target)
    left = sum(margin >= threshold and not same for margin, same in zip(margins, agree, strict=True))
    assert left == math.floor(total * (1 - Fraction(str(target))))


def test_what_a_calibration_says(classify_folder: Path) -> None:
    (model,) = open_registry(classify_folder).models.values()
    margins, agree = [0.05, 0.1, 0.2, 0.3, 0.9], [False, True, False, True, True]
    found = calibrate(model, margins, agree, 0.8)
    assert found.threshold == math.nextafter(0.05, 1)
    assert (found.inputs, found.int8_agreement, found.agreement, found.escalated) == (5, 0.6, 0.8, 0.2)
    assert (found.checkpoint, found.revision, found.task) == (model.name, model.revision, "classify")
    assert calibrate(model, margins, agree, 0.6).threshold == 0
    assert calibrate(model, margins, agree, 1).escalated == 0.6


@pytest.mark.parametrize(
    ("margins", "target", "words"), [([0.1], 0.0, "target"), ([0.1], 1.5, "1.5"), ([], 0.9, "no input")]
)
def test_what_cannot_be_calibrated(classify_folder: Path, margins: list[float], target: float, words: str) -> None:
    (model,) = open_registry(classify_folder).models.values()
    with pytest.raises(InputError, match=words):
        calibrate(model, margins, [True] * len(margins), target)


def calibration(folder: Path, task: str, threshold: float) -> Calibration:
    model = open_registry(folder).defaults[task]
    return Calibration(model.name, model.revision, task, threshold, 0.99, 10, 0.9, 0.99, (0.9, 1.0), 0.1)


def test_files_come_back_as_written(classify_folder: Path, qa_folder: Path, tmp_path: Path) -> None:
    written = [calibration(classify_folder, "classify", 0.1), calibration(qa_folder, "qa", math.nextafter(0.3, 1))]
    write_calibrations(tmp_path / "cascade.json", written)
    both, one = open_registry(classify_folder, qa_folder), open_registry(classify_folder)
    assert Cascade.read(tmp_path / "cascade.json", both).calibrations == tuple(written)
    # a server of one of the tasks takes what is its own
    assert Cascade.read(tmp_path / "cascade.json", one).calibrations == (written[0],)


def test_other_files_are_refused(classify_folder: Path, qa_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "cascade.json"
    good = calibration(classify_folder, "classify", 0.1)
    registry = open_registry(classify_folder)

    def refused(words: str) -> None:
        with pytest.raises(InputError, match=words) as error:
            Cascade.read(file, registry)
        assert "cascade.json" in str(error.value)

    refused("cannot be read")
    for text, words in (("{", "line 1: not valid JSON"), ("[]", "format_version"), ('{"format_version": 2}', "2")):
        file.write_text(text)
        refused(words)
    for change in ({"extra": 1}, {"threshold": -1}, {"threshold": "x"}, {"agreement_ci95": 0.5}):
        entry = {**asdict(good), **change}
        file.write_text(json.dumps({"format_version": 1, "calibrations": [entry]}))
        refused("not a file of")
    write_calibrations(file, [replace(good, revision="000000000000")])
    refused("calibrate again")
    write_calibrations(file, [calibration(qa_folder, "qa", 0.1)])
    refused("tiny-qa")


@contextmanager
def serve(
    tmp_path: Path, *calibrations: Calibration, folders: tuple[Path, ...], **more: object
) -> Iterator[TestClient]:
    write_calibrations(tmp_path / "cascade.json", calibrations)
    settings = Settings(threads=1, cascade=tmp_path / "cascade.json", **more)  # type: ignore[arg-type]
    app = create_app(settings, open_registry(*folders))
    with TestClient(app, raise_server_exceptions=False) as client:
        service: Service = app.state.service
        assert service.lifecycle.wait_until_settled(240) is State.READY
        yield client


def margins_of(client: TestClient, task: str) -> list[float]:
    """What int8 says: the best answer's lead, from the public routes alone."""
    if task == "classify":
        rows = client.post("/classify", json={"inputs": TEXTS, "backend": "int8"}).json()
        return [row[0]["score"] - row[1]["score"] for row in rows]
    body = {"inputs": questions(), "backend": "int8", "parameters": {"top_k": 2}}
    return [spans[0]["score"] - spans[1]["score"] for spans in client.post("/qa", json=body).json()]


def questions() -> list[dict[str, str]]:
    return [{"question": "who wrote it?", "context": context} for context in CONTEXTS]


def body_of(task: str) -> tuple[str, dict[str, object]]:
    return ("/classify", {"inputs": TEXTS}) if task == "classify" else ("/qa", {"inputs": questions()})


@pytest.mark.parametrize("task", ["classify", "qa"])
def test_each_input_is_answered_by_the_one_that_is_sure(
    classify_folder: Path, qa_folder: Path, tmp_path: Path, client: TestClient, task: str
) -> None:
    folder = classify_folder if task == "classify" else qa_folder
    path, body = body_of(task)
    alone = {b: client.post(path, json={**body, "backend": b}).json() for b in ("fp32", "int8")}
    margins = margins_of(client, task)
    for threshold in (0.0, *sorted(margins), 2.0):
        with serve(tmp_path, calibration(folder, task, threshold), folders=(folder,)) as cascaded:
            answer = cascaded.post(path, json={**body, "backend": "auto"})
            weak = [margin < threshold for margin in margins]
            expected = [alone["fp32" if asked else "int8"][n] for n, asked in enumerate(weak)]
            assert flat(answer.json()) == flat(expected)
            assert answer.headers["x-q8bert-backend"] == ("fp32" if any(weak) else "int8")
            assert answer.headers["x-q8bert-escalated"] == str(sum(weak))
            check_metrics(cascaded, task, weak, alone)


def flat(answer: object) -> list[object]:
    """Strings as they are, numbers within float32's rounding: batches of other sizes may round otherwise."""
    if isinstance(answer, dict):
        return [n for _, value in sorted(answer.items()) for n in flat(value)]
    if isinstance(answer, list):
        return [n for value in answer for n in flat(value)]
    return [pytest.approx(answer, abs=1e-6)] if isinstance(answer, float) else [answer]


def best(answer: object) -> object:
    """What agreement is about: the first label, or the span."""
    if isinstance(answer, list):
        return answer[0]["label"]
    assert isinstance(answer, dict)
    return answer["start"], answer["end"]


def escalations(client: TestClient, task: str, model: str, second: str) -> dict[str, float]:
    """The inputs of a model under `backend=auto`, by what came of them."""
    labels = {"task": task, "model": model, "second": second}
    found = samples(client)
    return {
        result: found["q8bert_escalations_total", tuple(sorted({**labels, "result": result}.items()))]
        for result in ("kept", "confirmed", "changed")
    }


def check_metrics(client: TestClient, task: str, weak: list[bool], alone: dict[str, list[object]]) -> None:
    found = samples(client)
    changed = sum(asked and best(a) != best(b) for asked, a, b in zip(weak, alone["fp32"], alone["int8"], strict=True))
    results = escalations(client, task, f"tiny-{task}", f"tiny-{task}@fp32")
    assert results == {"kept": len(weak) - sum(weak), "changed": changed, "confirmed": sum(weak) - changed}
    inferences = {b: found["q8bert_inferences_total", (("backend", b), ("task", task))] for b in ("fp32", "int8")}
    assert inferences["int8"] >= len(weak)
    assert (inferences["fp32"] > 0) == any(weak), "fp32 computes what was escalated and nothing else"
    if task == "classify":
        assert inferences == {"int8": len(weak), "fp32": sum(weak)}
    total = ("q8bert_requests_total", (("backend", "auto"), ("code", "200"), ("task", task)))
    assert found[total] == 1


def test_one_input_names_its_backend_and_adds_up_both_times(classify_folder: Path, tmp_path: Path) -> None:
    always = calibration(classify_folder, "classify", 2.0)
    with serve(tmp_path, always, folders=(classify_folder,)) as client:
        answer = client.post("/classify", json={"inputs": "good"}, headers={"x-q8bert-backend": "auto"})
        assert (answer.headers["x-q8bert-backend"], answer.headers["x-q8bert-escalated"]) == ("fp32", "1")
        plain = client.post("/classify", json={"inputs": "good", "backend": "fp32"})
        assert flat(answer.json()) == flat(plain.json())
        assert "x-q8bert-escalated" not in plain.headers
        found = samples(client)
        labels = (("backend", "auto"), ("stage", "infer"), ("task", "classify"))
        spent = found["q8bert_stage_duration_seconds_sum", labels]
        assert float(answer.headers["x-inference-time"]) == pytest.approx(spent * 1000, abs=0.01)
        timings = [part.split(";")[0] for part in answer.headers["server-timing"].split(", ")]
        assert timings == ["tokenize", "queue", "infer", "postprocess", "total"]
        for gauge in ("q8bert_requests_in_flight", "q8bert_queue_requests"):
            assert found[gauge, (("backend", "auto"),)] == 0


def test_without_a_threshold_auto_is_refused_with_what_to_do(client: TestClient) -> None:
    for path, body in (body_of("classify"), body_of("qa")):
        answer = client.post(path, json={**body, "backend": "auto"})
        assert (answer.status_code, answer.json()["error_type"]) == (404, "unknown_backend")
        for words in ("threshold", "q8bert compare", "--target-agreement", "serve --cascade"):
            assert words in answer.json()["error"]
    assert client.get("/info").json()["cascade"] == {}


def test_a_threshold_for_one_task_is_none_for_the_other(classify_folder: Path, qa_folder: Path, tmp_path: Path) -> None:
    one = calibration(classify_folder, "classify", 2.0)
    with serve(tmp_path, one, folders=(classify_folder, qa_folder), shadow_rate=1) as client:
        assert client.post("/classify", json={"inputs": "good", "backend": "auto"}).status_code == 200
        # sampled with int8's own answer, whoever answered in the end
        wait_until(lambda: client.get("/agreement").json()["models"]["tiny-classify"]["compared"] == 1)
        (case,) = client.get("/agreement").json()["models"]["tiny-classify"]["worst"]
        plain = client.post("/classify", json={"inputs": "good", "backend": "int8"}).json()
        assert flat(case["answers"]["int8"]) == flat(plain[0])
        assert client.post("/qa", json={"inputs": questions(), "backend": "auto"}).status_code == 404
        found = client.get("/info").json()["cascade"]
        assert (list(found), found["tiny-classify"]["threshold"]) == (["tiny-classify"], 2.0)
        assert found["tiny-classify"]["second"] == "tiny-classify@fp32"


def test_the_backends_that_are_needed(classify_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shadow_rate needs the backends fp32 and int8"):
        Settings(backends=("int8",), shadow_rate=0.5)
    write_calibrations(tmp_path / "cascade.json", [calibration(classify_folder, "classify", 0.5)])
    for backends, words in ((("int8",), "needs fp32, too; loaded: int8"), (("fp32",), "int8 answers first")):
        with pytest.raises(InputError, match=words):
            Cascade.read(tmp_path / "cascade.json", open_registry(classify_folder, backends=backends))
