"""`backend=auto` from a model of few bits to another model: its answers, its refusals, and who is said to answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from q8core.errors import InputError
from service.core import Service
from service.http.app import create_app
from service.lifecycle import State
from service.models.registry import ModelRegistry
from service.second_opinion.cascade import Calibration, Cascade, write_calibrations
from service.settings import Settings
from tests.models import small
from tests.service.second_opinion.test_cascade import TEXTS, body_of, escalations, flat
from tests.service.tiny_checkpoints import LABELS, make_checkpoint

Folders = dict[str, Path]
THRESHOLDS = {"classify": 0.7, "qa": 0.08}
"""Above several of the margins of the inputs here, and below others."""
SECONDS = {"few": "full@int8", "few-qa": "full-qa@fp32"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """For each task a model of few bits, and another model; the classifiers have their labels in different orders."""
    root = tmp_path_factory.mktemp("pairs")
    return {
        "few": make_checkpoint(root / "few", "classify", seed=1, scheme=small("qbert-4")),
        "full": make_checkpoint(root / "full", "classify", seed=5, labels=LABELS[::-1]),
        "few-qa": make_checkpoint(root / "few-qa", "qa", seed=2, scheme=small("kdlsq-2")),
        "full-qa": make_checkpoint(root / "full-qa", "qa", seed=6),
        "stars": make_checkpoint(root / "stars", "classify", seed=7, labels=("1", "2", "3")),
    }


def opened(folders: Folders, *names: str, backends: tuple[str, ...] = ("fp32", "int8"), **others: str) -> ModelRegistry:
    """The models under their names, and others under other names."""
    named = [*((name, folders[name]) for name in names), *((name, folders[of]) for name, of in others.items())]
    return ModelRegistry.open([], backends, "fbgemm", 1, named=named)


def calibration(folders: Folders, name: str, second: str) -> Calibration:
    registry = opened(folders, name, second.partition("@")[0])
    first, other = registry.models.values()
    numbers = (THRESHOLDS[first.task], 0.99, 10, 0.9, 0.99, (0.9, 1.0), 0.1)
    return Calibration(name, first.revision, first.task, *numbers, second, other.revision)


@pytest.fixture(scope="module")
def cascaded(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    file = tmp_path_factory.mktemp("cascade") / "cascade.json"
    write_calibrations(file, [calibration(folders, name, second) for name, second in SECONDS.items()])
    app = create_app(Settings(threads=1, cascade=file), opened(folders, *SECONDS, "full", "full-qa"))
    with TestClient(app, raise_server_exceptions=False) as client:
        service: Service = app.state.service
        assert service.lifecycle.wait_until_settled(240) is State.READY, service.lifecycle.failure
        yield client


def margins_of(client: TestClient, task: str) -> list[float]:
    """How far the best answer of int8 leads, from the public routes alone."""
    path, body = body_of(task)
    answers = client.post(path, json={**body, "backend": "int8", "parameters": {"top_k": 2}}).json()
    return [first["score"] - second["score"] for first, second in answers]


@pytest.mark.parametrize(("name", "top_k"), [("few", 3), ("few-qa", 1), ("few-qa", 3)])
def test_each_input_is_answered_by_the_model_that_is_sure(cascaded: TestClient, name: str, top_k: int) -> None:
    task = "qa" if name == "few-qa" else "classify"
    model, backend = SECONDS[name].split("@")
    path, body = body_of(task)
    body["parameters"] = {"top_k": top_k}
    weak = [margin < THRESHOLDS[task] for margin in margins_of(cascaded, task)]
    assert 1 < sum(weak) < len(weak)
    first = cascaded.post(path, json={**body, "backend": "int8"}).json()
    second = cascaded.post(path, json={**body, "model": model, "backend": backend}).json()
    before = escalations(cascaded, task, name, SECONDS[name])
    answer = cascaded.post(path, json={**body, "backend": "auto"})
    assert flat(answer.json()) == flat([(second if asked else first)[n] for n, asked in enumerate(weak)])
    headers = [answer.headers[f"x-q8bert-{what}"] for what in ("backend", "model", "escalated")]
    assert headers == [SECONDS[name], name, str(sum(weak))]
    after = escalations(cascaded, task, name, SECONDS[name])
    grown = {result: after[result] - before[result] for result in after}
    assert grown["kept"] == len(weak) - sum(weak)
    assert grown["confirmed"] + grown["changed"] == sum(weak)
    assert grown["changed"] > 0


def test_one_question_gets_one_answer_and_its_other_model_is_timed(cascaded: TestClient) -> None:
    questions = [{"question": "who wrote it?", "context": text} for text in TEXTS]
    answers = [cascaded.post("/qa", json={**question, "backend": "auto"}) for question in questions]
    backends = [answer.headers["x-q8bert-backend"] for answer in answers]
    assert {*backends} == {"int8", "full-qa@fp32"}
    for question, answer, backend in zip(questions, answers, backends, strict=True):
        asked = {"backend": "int8"} if backend == "int8" else {"model": "full-qa", "backend": "fp32"}
        assert flat(answer.json()) == flat(cascaded.post("/qa", json={**question, **asked}).json())
        timings = [part.split(";")[0] for part in answer.headers["server-timing"].split(", ")]
        assert timings == ["tokenize", "queue", "infer", "postprocess", "total"]


def test_what_the_other_model_cannot_read_is_refused_in_its_name(cascaded: TestClient) -> None:
    weak = [n for n, margin in enumerate(margins_of(cascaded, "classify")) if margin < THRESHOLDS["classify"]]
    longer = [n for n in weak if " " in TEXTS[n]]
    service: Service = cascaded.app.state.service  # type: ignore[attr-defined]
    service.registry.models["full"].max_length = 3  # a word
    try:
        body = {"inputs": TEXTS, "backend": "auto", "parameters": {"truncation": False}}
        refused = cascaded.post("/classify", json=body)
        cut = cascaded.post("/classify", json={"inputs": TEXTS, "backend": "auto"})
    finally:
        service.registry.models["full"].max_length = 64
    assert (refused.status_code, refused.json()["error_type"]) == (422, "input_too_long")
    assert refused.json()["error"].startswith(f"full@int8: inputs[{longer[0]}] has ")
    assert (cut.status_code, cut.headers["x-q8bert-truncated"]) == (200, str(len(longer)))


def test_info_names_what_answers_again(cascaded: TestClient) -> None:
    found = cascaded.get("/info").json()["cascade"]
    assert {name: one["second"] for name, one in found.items()} == SECONDS
    refused = cascaded.post("/classify", json={"inputs": "good", "model": "full", "backend": "auto"})
    assert (refused.status_code, refused.json()["error_type"]) == (404, "unknown_backend")
    assert "needs a threshold for full" in refused.json()["error"]


def test_models_are_found_by_their_weights_whatever_they_are_called(folders: Folders, tmp_path: Path) -> None:
    write_calibrations(tmp_path / "c.json", [calibration(folders, "few", "full@int8")])
    registry = opened(folders, small="few", large="full", backends=("int8",))
    cascade = Cascade.read(tmp_path / "c.json", registry)
    small_one, large = registry.models["small"], registry.models["large"]
    assert cascade.second(small_one).name == "large@int8"
    assert cascade.users(large) == ["small"]
    assert cascade.users(small_one) == []
    # of several with these weights, the one of that name
    registry = opened(folders, "few", large="full", full="full")
    found = Cascade.read(tmp_path / "c.json", registry)
    assert found.second(registry.models["few"]).name == "full@int8"


def test_seconds_that_cannot_answer_again_are_refused_at_start(folders: Folders, tmp_path: Path) -> None:
    file = tmp_path / "cascade.json"
    good = calibration(folders, "few", "full@int8")

    def refused(registry: ModelRegistry, words: str, **changes: object) -> None:
        entry = {**asdict(good), **changes}
        file.write_text(json.dumps({"format_version": 1, "calibrations": [entry]}))
        with pytest.raises(InputError, match=words) as error:
            Cascade.read(file, registry)
        assert "cascade.json" in str(error.value)

    both = opened(folders, "few", "full")
    refused(opened(folders, "few"), f"few needs full@int8 with revision {good.second_revision}.* it is not served")
    refused(opened(folders, "few", full="full-qa"), "it is served with revision")
    refused(both, "it is served with revision", second_revision="000000000000")
    stars = calibration(folders, "few", "stars@int8")
    pair = opened(folders, "few", "stars")
    refused(pair, "same labels", second=stars.second, second_revision=stars.second_revision)
    refused(both, "few is not possible: .* twice", second="few@int8", second_revision=good.revision)
    refused(both, "second_revision is None for few: both, or none", second_revision=None)
    refused(both, "not a file of", second="full@auto")
    refused(both, "not a file of", second="full")
    without = opened(folders, "few", "full", backends=("int8",))
    refused(without, "few needs fp32, too; loaded: int8", second="full@fp32")
    assert (
        Cascade(both, [replace(good, second=None, second_revision=None)]).second(both.models["few"]).name == "few@fp32"
    )
