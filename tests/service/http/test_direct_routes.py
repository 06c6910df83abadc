"""The short way of good bodies and FastAPI's own way give the same answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from starlette.routing import Match
from starlette.types import Scope

SHORT, USUAL = "application/json", "application/json; charset=utf-8"
QUESTION = {"question": "who wrote the book?", "context": "the book was written by ada in paris"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/classify", {"inputs": "a good film"}),
        ("/classify", {"inputs": ["a", {"text": "b", "text_pair": "é 😀"}, ["c", "d"]], "parameters": {"top_k": 2}}),
        ("/classify", {"inputs": "a", "backend": "fp32"}),
        ("/classify", {"inputs": "a", "backend": "fp16"}),
        ("/classify", {"inputs": "a", "parameters": {"top_k": True}}),
        ("/classify", {"inputs": "a", "paramters": {}}),
        ("/classify", {"inputs": []}),
        ("/classify", []),
        ("/qa", {"inputs": QUESTION}),
        ("/qa", {"inputs": [QUESTION, QUESTION], "parameters": {"top_k": 3}}),
        ("/question-answering", {"inputs": {"question": "", "context": "a"}}),
    ],
)
@pytest.mark.parametrize("backend", [None, "int8"])
def test_same_answer(client: TestClient, path: str, body: Any, backend: str | None) -> None:
    answers = []
    for kind in (SHORT, USUAL):
        headers = {"content-type": kind, "x-request-id": "1"} | ({"x-q8bert-backend": backend} if backend else {})
        answer = client.post(path, content=json.dumps(body), headers=headers)
        shown = ("content-type", "x-q8bert-backend", "x-q8bert-model", "x-compute-tokens", "x-request-id")
        answers.append((answer.status_code, answer.content, [answer.headers.get(name) for name in shown]))
    assert answers[0] == answers[1]


def test_only_the_usual_way_reaches_the_frameworks_router(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    application = client.app
    assert isinstance(application, FastAPI)
    match = APIRoute.matches

    def note(route: APIRoute, scope: Scope) -> tuple[Match, Scope]:
        seen.append(scope["path"])
        return match(route, scope)

    monkeypatch.setattr(APIRoute, "matches", note)
    for path, inputs in {"/classify": "good", "/qa": QUESTION, "/compare": "good"}.items():
        for kind, expected in ((USUAL, {path}), (SHORT, set[str]())):
            seen.clear()
            answer = client.post(path, content=json.dumps({"inputs": inputs}), headers={"content-type": kind})
            assert (answer.status_code, set(seen)) == (200, expected)
    # what is no valid body is refused in the framework's words
    seen.clear()
    answer = client.post("/classify", content=b'{"inputs": 5}', headers={"content-type": SHORT})
    assert (answer.status_code, set(seen)) == (422, {"/classify"})


def test_deep_nesting_is_a_bad_body_on_both(client: TestClient) -> None:
    content = '{"inputs":' + "[" * 50_000 + "]" * 50_000 + "}"
    answers = [client.post("/classify", content=content, headers={"content-type": kind}) for kind in (SHORT, USUAL)]
    assert [answer.status_code for answer in answers] == [400, 400]
