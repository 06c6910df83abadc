"""Fields that clients of other servers send: honoured as there, without effect where it says so, or refused."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from fastapi.testclient import TestClient
from transformers import BertTokenizerFast

from service.http.routes import admin, tei, vllm
from service.tasks import schemas
from service.tasks.strict import StrictModel
from tests.service.tiny_checkpoints import LABELS, POSITIONS, WORDS

TEXT = "the film is good"
QA = {"question": "who wrote it?", "context": "It was written by Ada in Paris. " * 5}
ROOM = POSITIONS - 2
WORDS_OF_LONG = Random(0).choices(WORDS, k=100)
LONG = " ".join(WORDS_OF_LONG)
OPTIONS = ("use_cache", "wait_for_model", "use_gpu", "dont_load_model", "retry_on_error")
BODIES: dict[str, dict[str, Any]] = {
    "/classify": {"inputs": TEXT},
    "/qa": QA,
    "/question-answering": {"inputs": QA},
    "/compare": {"inputs": TEXT},
    "/predict": {"inputs": TEXT},
    "/tokenize": {"inputs": TEXT},
    "/v1/classify": {"input": TEXT},
}
MODELS: dict[str, type[StrictModel]] = {
    "/classify": schemas.ClassifyRequest,
    "/qa": schemas.QARequest,
    "/question-answering": schemas.QARequest,
    "/compare": schemas.CompareRequest,
    "/predict": tei.PredictRequest,
    "/tokenize": tei.TokenizeRequest,
    "/v1/classify": vllm.VllmRequest,
}
PARAMETERS = {
    "/classify": schemas.ClassifyParameters,
    "/qa": schemas.QAParameters,
    "/question-answering": schemas.QAParameters,
}


def ask(client: TestClient, path: str, **fields: Any) -> Any:
    answer = client.post(path, json={**BODIES[path], **fields})
    assert answer.status_code == 200, answer.text
    return numbers(answer.json())


def numbers(answer: Any) -> Any:
    """What an answer says of the text, without times and ids."""
    if isinstance(answer, dict) and "data" in answer:
        return answer["data"], answer["usage"]
    if isinstance(answer, dict) and "results" in answer:
        return {backend: share["answer"] for backend, share in answer["results"].items()}
    return answer


def refused(client: TestClient, path: str, **fields: Any) -> str:
    answer = client.post(path, json={**BODIES[path], **fields})
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation"), answer.text
    assert "|" not in answer.text
    return answer.json()["error"]


@pytest.mark.parametrize("path", PARAMETERS)
def test_hugging_faces_options_change_nothing(client: TestClient, path: str) -> None:
    expected = ask(client, path)
    everything = [dict.fromkeys(OPTIONS, value) for value in (True, False, None)]
    for options in (None, {}, *({name: True} for name in OPTIONS), *everything):
        assert ask(client, path, options=options) == expected


@pytest.mark.parametrize("path", PARAMETERS)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"use_cache": "yes"}, "options.use_cache"),
        ({"wait_for_model": 1}, "options.wait_for_model"),
        ({"use_gpu": [True]}, "options.use_gpu"),
        ({"cache": True}, "options: unknown field 'cache'; allowed: use_cache, wait_for_model, use_gpu"),
        ([], "options"),
        ("use_cache", "options"),
        (True, "options"),
    ],
)
def test_options_of_another_kind_are_refused(client: TestClient, path: str, options: Any, words: str) -> None:
    assert words in refused(client, path, options=options)


@pytest.mark.parametrize("path", PARAMETERS)
def test_null_is_the_default_of_every_parameter(client: TestClient, path: str) -> None:
    expected, names = ask(client, path), PARAMETERS[path].model_fields
    for name in names:
        assert ask(client, path, parameters={name: None}) == expected, name
    assert ask(client, path, parameters=dict.fromkeys(names)) == expected
    assert ask(client, path, parameters=None) == expected


@pytest.mark.parametrize("path", BODIES)
def test_null_is_the_default_of_every_optional_field(client: TestClient, path: str) -> None:
    expected = ask(client, path)
    for name, field in MODELS[path].model_fields.items():
        if not field.is_required() and name not in BODIES[path]:
            assert ask(client, path, **{name: None}) == expected, name


@pytest.mark.parametrize(
    ("path", "field"),
    [("/classify", "inputs"), ("/predict", "inputs"), ("/tokenize", "inputs"), ("/v1/classify", "input")],
)
def test_null_is_no_text(client: TestClient, path: str, field: str) -> None:
    assert field in refused(client, path, **{field: None})


def test_the_document_says_where_null_is_taken(client: TestClient) -> None:
    documented = client.get("/openapi.json").json()["components"]["schemas"]
    bodies = {*MODELS.values(), *PARAMETERS.values(), schemas.HostedOptions, schemas.TextPair, schemas.QAInput}
    for body in bodies:
        for name, one in documented[body.__name__]["properties"].items():
            takes_null = {"type": "null"} in one.get("anyOf", [])
            assert takes_null != body.model_fields[name].is_required(), (body, name)
    top_k = documented["QAParameters"]["properties"]["top_k"]
    assert (top_k["default"], top_k["anyOf"][0]) == (1, {"type": "integer", "minimum": 1, "maximum": 20})
    assert admin.LoadRequest.model_json_schema()["required"] == ["path"]


def scores(row: list[dict[str, Any]]) -> list[float]:
    return [next(entry["score"] for entry in row if entry["label"] == label) for label in LABELS]


def whole(client: TestClient, inputs: Any) -> list[float]:
    """The scores of a text that needs no cutting."""
    answer = client.post("/classify", json={"inputs": inputs, "parameters": {"truncation": False}})
    assert answer.status_code == 200, answer.text
    return scores(answer.json()[0])


@pytest.mark.parametrize(
    ("direction", "words"),
    [
        ("Left", WORDS_OF_LONG[-ROOM:]),
        ("left", WORDS_OF_LONG[-ROOM:]),
        ("Right", WORDS_OF_LONG[:ROOM]),
        ("right", WORDS_OF_LONG[:ROOM]),
        (None, WORDS_OF_LONG[:ROOM]),
    ],
)
def test_teis_direction_is_where_tokens_are_lost(client: TestClient, direction: str | None, words: list[str]) -> None:
    body = {"inputs": LONG, "truncate": True, "truncation_direction": direction}
    answer = client.post("/predict", json=body)
    assert answer.headers["x-q8bert-truncated"] == "1"
    assert scores(answer.json()) == pytest.approx(whole(client, " ".join(words)), abs=1e-6)
    assert whole(client, " ".join(WORDS_OF_LONG[:ROOM])) != pytest.approx(
        whole(client, " ".join(WORDS_OF_LONG[-ROOM:])), abs=1e-3
    ), "the two are told apart"
    short = client.post("/predict", json={**body, "inputs": TEXT})
    assert scores(short.json()) == pytest.approx(whole(client, TEXT), abs=1e-6)
    untold = client.post("/predict", json={**body, "truncate": False})
    assert (untold.status_code, untold.json()["error_type"]) == (422, "input_too_long")


def test_pairs_and_batches_are_cut_from_the_left_as_well(client: TestClient, classify_folder: Path) -> None:
    tokenizer = BertTokenizerFast(tokenizer_file=str(classify_folder / "tokenizer.json"), truncation_side="left")
    pair = [" ".join(WORDS_OF_LONG[:70]), " ".join(WORDS_OF_LONG[20:60])]
    cut = tokenizer(*pair, max_length=POSITIONS, truncation=True)["input_ids"]
    first, second = tokenizer.decode(cut, clean_up_tokenization_spaces=False).split(" [SEP]")[:2]
    expected = [
        whole(client, {"text": first.removeprefix("[CLS] "), "text_pair": second.strip()}),
        whole(client, " ".join(WORDS_OF_LONG[-ROOM:])),
        whole(client, TEXT),
    ]
    body = {"inputs": [pair, [LONG], [TEXT]], "truncate": True, "truncation_direction": "Left"}
    answer = client.post("/predict", json=body)
    assert answer.headers["x-q8bert-truncated"] == "2"
    for row, one in zip(answer.json(), expected, strict=True):
        assert scores(row) == pytest.approx(one, abs=1e-6)


@pytest.mark.parametrize("direction", ["LEFT", "up", "", 1, True, ["Left"]])
def test_other_directions_are_refused(client: TestClient, direction: Any) -> None:
    assert "truncation_direction" in refused(client, "/predict", truncation_direction=direction)


@pytest.mark.parametrize("path", ["/predict", "/tokenize"])
def test_a_prompt_is_refused_as_by_tei_where_there_are_none(client: TestClient, path: str) -> None:
    assert "prompt_name is 'query', and the models here have no prompts" in refused(client, path, prompt_name="query")
    assert "prompt_name is ''" in refused(client, path, prompt_name="")
    assert "prompt_name" in refused(client, path, prompt_name=1)


@pytest.mark.parametrize("count", [3, 4, 10, POSITIONS - 1, POSITIONS])
@pytest.mark.parametrize("side", [None, "right", "left"])
def test_vllms_truncation_keeps_so_many_tokens(client: TestClient, count: int, side: str | None) -> None:
    texts = [LONG, TEXT]
    body = {"input": texts, "truncate_prompt_tokens": count, "truncation_side": side}
    answer = client.post("/v1/classify", json=body)
    assert answer.status_code == 200, answer.text
    kept = [min(count, len(text.split()) + 2) for text in texts]
    assert answer.json()["usage"]["prompt_tokens"] == int(answer.headers["x-compute-tokens"]) == sum(kept)
    assert answer.headers["x-q8bert-truncated"] == str(
        sum(k < len(t.split()) + 2 for k, t in zip(kept, texts, strict=True))
    )
    for entry, text, tokens in zip(answer.json()["data"], texts, kept, strict=True):
        words = text.split()
        left = words[len(words) - (tokens - 2) :] if side == "left" else words[: tokens - 2]
        assert entry["probs"] == pytest.approx(whole(client, " ".join(left)), abs=1e-6)


def test_minus_one_is_what_the_model_takes(client: TestClient) -> None:
    for side, words in (("right", WORDS_OF_LONG[:ROOM]), ("left", WORDS_OF_LONG[-ROOM:])):
        body = {"input": LONG, "truncate_prompt_tokens": -1, "truncation_side": side}
        answer = client.post("/v1/classify", json=body).json()
        assert answer["usage"]["prompt_tokens"] == POSITIONS
        assert answer["data"][0]["probs"] == pytest.approx(whole(client, " ".join(words)), abs=1e-6)
    untold = client.post("/v1/classify", json={"input": LONG, "truncation_side": "left"})
    assert (untold.status_code, untold.json()["error_type"]) == (422, "input_too_long")


@pytest.mark.parametrize("count", [0, 1, 2, POSITIONS + 1, 512, 10**30])
def test_a_length_that_cannot_be_is_refused(client: TestClient, count: int) -> None:
    error = refused(client, "/v1/classify", truncate_prompt_tokens=count)
    assert error == f"truncate_prompt_tokens is {count}; allowed: 3 to 64 (the model takes at most 64), or -1 for that"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("truncate_prompt_tokens", value) for value in (-2, True, 5.0, "5", [5])),
        *(("truncation_side", value) for value in ("Left", "up", 1)),
    ],
)
def test_values_of_another_kind_are_refused(client: TestClient, field: str, value: Any) -> None:
    assert field in refused(client, "/v1/classify", **{field: value})
