"""What a model cannot take, and what is cut: known when it is opened, told to the request, counted."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer, BertForQuestionAnswering, BertForSequenceClassification

from q8core.checkpoint import Checkpoint
from q8core.errors import CheckpointError, InputError
from service.http.app import create_app
from service.lifecycle import State
from service.models.model import open_model
from service.models.registry import ModelRegistry
from service.settings import Settings
from tests.conftest import save_tiny

LONG = "a good film " * 30
"""90 words."""


def with_values(folder: Path, file: str, **values: object) -> Path:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **values}))
    return folder


@contextmanager
def serving(*folders: Path, max_length: int | None = None) -> Iterator[TestClient]:
    named = [(folder.name, folder) for folder in folders]
    registry = ModelRegistry.open((), ("fp32",), threads=1, named=named, max_length=max_length)
    with TestClient(create_app(Settings(threads=1, backends=("fp32",)), registry)) as client:
        assert client.app.state.service.lifecycle.wait_until_settled(240) is State.READY  # pyright: ignore
        yield client


def one_token_type(source: Path, folder: Path) -> Path:
    """The same model without its second token type."""
    shutil.copytree(source, folder)
    qa = "qa" in source.parent.name
    model = (BertForQuestionAnswering if qa else BertForSequenceClassification).from_pretrained(source)
    kept = model.bert.embeddings.token_type_embeddings.weight[:1].detach().clone()
    model.bert.embeddings.token_type_embeddings = torch.nn.Embedding.from_pretrained(kept)
    model.config.type_vocab_size = 1
    model.save_pretrained(folder)
    return folder


def test_a_model_with_one_token_type_takes_single_texts(
    tiny_classifier: Path, tiny_qa: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    classifier, qa = one_token_type(tiny_classifier, tmp_path / "c"), one_token_type(tiny_qa, tmp_path / "q")
    pair = {"text": "a film", "text_pair": "a plot"}
    with caplog.at_level(logging.WARNING), serving(classifier, qa) as client:
        alone = client.post("/classify", json={"inputs": "a good film"})
        assert alone.status_code == 200
        for path, body in (
            ("/classify", {"inputs": pair}),
            ("/classify", {"inputs": ["a film", ["a film", "a plot"]]}),
            ("/predict", {"inputs": ["a film", "a plot"]}),
            ("/qa", {"question": "who?", "context": "a good film"}),
            ("/compare", {"question": "who?", "context": "a good film"}),
        ):
            if path == "/compare":
                continue  # both backends are needed
            answer = client.post(path, json=body)
            assert (answer.status_code, answer.json()["error_type"]) == (422, "validation"), body
            assert "takes single texts only: it has one token type" in answer.json()["error"]
        assert client.post("/classify", json={"inputs": "a good film"}).json() == alone.json()
    assert caplog.text.count("pairs of texts, and questions, are refused: ") == 2


def test_pairs_go_by_the_tokenizers_template(tiny_classifier: Path, tiny_qa: Path, tmp_path: Path) -> None:
    """With four special tokens and type 0 throughout, as RoBERTa's: one token type is enough; transformers is asked."""
    folders = one_token_type(tiny_classifier, tmp_path / "c"), one_token_type(tiny_qa, tmp_path / "q")
    for folder in folders:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        first, last = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
        tokenizer.post_processor = processors.RobertaProcessing(("[SEP]", last), ("[CLS]", first))
        tokenizer.save(str(folder / "tokenizer.json"))
        with_values(folder, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    theirs, model = (kind.from_pretrained(folders[0]) for kind in (AutoTokenizer, BertForSequenceClassification))
    ids = theirs("a good film", "a plot", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = model.eval()(ids, token_type_ids=torch.zeros_like(ids)).logits.softmax(-1).amax().item()
    with serving(*folders) as client:
        pair = client.post("/classify", json={"inputs": {"text": "a good film", "text_pair": "a plot"}})
        assert pair.json()[0][0]["score"] == pytest.approx(expected, abs=1e-5)
        answer = client.post("/qa", json={"question": "who?", "context": "a good film"})
        assert answer.json()["answer"] in "a good film"
        tokens = client.post("/tokenize", json={"inputs": "a film"}).json()[0]
        assert [(token["text"], token["special"]) for token in tokens] == [
            ("[CLS]", True), ("a", False), ("film", False), ("[SEP]", True),
        ]  # fmt: skip
        cut = client.post("/v1/classify", json={"input": "a film", "truncate_prompt_tokens": 2})
        assert "allowed: 3 to 128" in cut.json()["error"]


def test_a_float_folder_is_read_as_far_as_its_model_says(tiny_classifier: Path, tmp_path: Path) -> None:
    """Hugging Face's own answer to the whole text is the oracle; 128 positions, 92 tokens."""
    whole = Path(shutil.copytree(tiny_classifier, tmp_path / "whole"))
    short = with_values(Path(shutil.copytree(tiny_classifier, tmp_path / "short")), "tokenizer_config.json",
                        model_max_length=24)  # fmt: skip
    endless = with_values(Path(shutil.copytree(tiny_classifier, tmp_path / "endless")), "tokenizer_config.json",
                          model_max_length=int(1e30))  # fmt: skip
    assert [Checkpoint.open(folder).max_length for folder in (whole, short, endless)] == [128, 24, 128]
    model = BertForSequenceClassification.from_pretrained(tiny_classifier).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_classifier)
    with serving(whole, short) as client:
        for name, length in (("whole", 128), ("short", 24)):
            encoded = tokenizer(LONG, truncation=True, max_length=length, return_tensors="pt")
            with torch.no_grad():
                wanted = torch.softmax(model(**encoded).logits[0], -1).tolist()
            answer = client.post("/classify", json={"inputs": LONG, "model": name})
            found = {row["label"]: row["score"] for row in answer.json()[0]}
            assert [found["negative"], found["positive"]] == pytest.approx(wanted, abs=1e-5)
            assert answer.headers["x-q8bert-truncated"] == ("0" if name == "whole" else "1")
        strict = {"inputs": LONG, "model": "short", "parameters": {"truncation": False}}
        error = client.post("/classify", json=strict).json()["error"]
        assert "has 92 tokens, at most 24 of the model's 128 are read (--max-length)" in error


def test_max_length_is_the_operators(tiny_classifier: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = Path(shutil.copytree(tiny_classifier, tmp_path / "it"))
    with caplog.at_level(logging.WARNING), serving(folder, max_length=16) as client:
        for _ in range(3):
            answer = client.post("/classify", json={"inputs": [LONG, "a film", LONG]})
            assert answer.headers["x-q8bert-truncated"] == "2"
        assert client.get("/info").json()["models"]["it"]["max_length"] == 16
        refused = client.post("/v1/classify", json={"input": "a film", "truncate_prompt_tokens": 17}).json()["error"]
        assert "allowed: 3 to 16 (at most 16 of the model's 128 are read (--max-length))" in refused
    assert caplog.text.count("it: texts with more than 16 tokens are cut") == 1
    for length in (7, 129):
        with pytest.raises(InputError, match=f"--max-length is {length}; .* allows 8 to 128"):
            open_model(folder, None, length)


def test_windows_of_questions_follow_the_models_length(tiny_qa: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_qa, tmp_path / "it"))
    question = {"question": "who built it?", "context": LONG}
    with serving(folder) as client:
        assert client.post("/qa", json=question).headers["x-q8bert-windows"] == "1"
    with serving(folder, max_length=32) as client:
        assert int(client.post("/qa", json=question).headers["x-q8bert-windows"]) > 3


@pytest.mark.parametrize(
    ("value", "reason"), [(4, "model_max_length is 4; at least 8"), ("512", "positive whole number"), (0, "positive")]
)
def test_a_length_that_cannot_be_is_refused_when_a_model_is_opened(
    value: object, reason: str, tiny_classifier: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_classifier, tmp_path / "it"))
    with_values(folder, "tokenizer_config.json", model_max_length=value)
    with pytest.raises(CheckpointError, match=reason):
        Checkpoint.open(folder)


def test_tokens_beyond_the_table_are_refused_when_a_model_is_opened(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "it", "classify")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[E1]", "[E2]"]})
    tokenizer.save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"beyond it: '\[E1\]' \(\d+\), '\[E2\]'.*resize_token_embeddings"):
        open_model(folder)
