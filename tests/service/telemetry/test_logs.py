"""What is logged of requests: one JSON object each, with times and ids, and never their texts."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.http.app import create_app
from service.lifecycle import State
from service.settings import Settings
from service.telemetry.logs import JsonFormatter, configure_logging
from tests.service.conftest import open_registry

SECRET = "unmistakable film"


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    others = {name: logging.getLogger(name).level for name in ("uvicorn", "httpx2")}
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # the test's own client
    yield root
    root.handlers[:], root.level = handlers, level
    for name, before in others.items():
        logging.getLogger(name).setLevel(before)


@pytest.fixture(scope="module")
def talkative(classify_folder: Path, qa_folder: Path) -> Iterator[TestClient]:
    app = create_app(Settings(threads=1, json_logs=True), open_registry(classify_folder, qa_folder))
    with TestClient(app, raise_server_exceptions=False) as client:
        assert app.state.service.lifecycle.wait_until_settled(240) is State.READY
        yield client


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.usefixtures("root_logger")
def test_one_line_for_each_request(talkative: TestClient, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", json_lines=True)
    answer = talkative.post(
        "/classify", json={"inputs": [SECRET, "good"], "backend": "fp32"}, headers={"x-request-id": "abc-1"}
    )
    assert answer.status_code == 200
    (line,) = lines(capsys.readouterr().err)
    stages = line.pop("stages_ms")
    assert isinstance(stages, dict)
    assert set(stages) == {"tokenize", "queue", "infer", "postprocess"}
    total, _ = line.pop("total_ms"), line.pop("time")
    assert isinstance(total, float)
    assert sum(stages.values()) <= total
    assert line == {
        "level": "info",
        "logger": "service.telemetry.request_log",
        "message": "request",
        "request_id": "abc-1",
        "task": "classify",
        "backend": "fp32",
        "model": "tiny-classify",
        "status": 200,
        "tokens": int(answer.headers["x-compute-tokens"]),
        "truncated": 0,
    }


@pytest.mark.usefixtures("root_logger")
def test_a_comparison_shows_both_shares(talkative: TestClient, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", json_lines=True)
    assert talkative.post("/compare", json={"inputs": SECRET}).status_code == 200
    (line,) = lines(capsys.readouterr().err)
    assert isinstance(line["shares"], list)
    assert sorted(share["backend"] for share in line["shares"]) == ["fp32", "int8"]


@pytest.mark.usefixtures("root_logger")
def test_refusals_say_why(talkative: TestClient, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", json_lines=True)
    assert talkative.post("/qa", json={"question": SECRET, "context": ""}).status_code == 422
    (line,) = lines(capsys.readouterr().err)
    assert (line["status"], line["error_type"], line["task"]) == (422, "validation", "qa")


@pytest.mark.usefixtures("root_logger")
@pytest.mark.parametrize("level", ["info", "debug"])
def test_no_text_is_ever_logged(talkative: TestClient, capsys: pytest.CaptureFixture[str], level: str) -> None:
    configure_logging(level, json_lines=True)
    for path, body in (
        ("/classify", {"inputs": SECRET}),
        ("/classify", {"inputs": SECRET, "parameters": {"top_k": SECRET}}),
        ("/classify", {"inputs": SECRET, "backend": SECRET}),
        ("/qa", {"question": SECRET, "context": f"{SECRET} by ada"}),
        ("/qa", {"question": SECRET, SECRET: 1}),
        ("/compare", {"inputs": SECRET}),
    ):
        talkative.post(path, json=body)
    talkative.post("/classify", content=f"{{{SECRET}".encode(), headers={"content-type": "application/json"})
    logged = capsys.readouterr().err
    assert len(logged.splitlines()) >= 7
    assert SECRET not in logged
    assert "unmistakable" not in logged


@pytest.mark.usefixtures("root_logger")
def test_probes_are_not_logged(talkative: TestClient, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", json_lines=True)
    for path in ("/livez", "/readyz", "/metrics", "/info", "/no/such/path"):
        talkative.get(path)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("root_logger")
def test_without_the_setting_requests_are_not_logged(client: TestClient, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info")
    assert client.post("/classify", json={"inputs": SECRET}).status_code == 200
    assert capsys.readouterr().err == ""


def test_exceptions_and_line_ends_stay_on_one_line() -> None:
    formatter = JsonFormatter({"worker": 2})
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        record = logging.LogRecord("a", logging.ERROR, "", 0, "x %s\n", ("\ud800",), (type(error), error, None))
    text = formatter.format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert (line["worker"], line["level"], line["message"]) == (2, "error", "x \ud800\n")
    assert line["exception"].endswith("ValueError: first\nsecond")


@pytest.mark.usefixtures("root_logger")
def test_lines_for_people_name_the_worker(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", worker=3)
    logging.getLogger("some.name").info("words")
    assert capsys.readouterr().err.endswith(" worker 3 INFO some.name: words\n")
