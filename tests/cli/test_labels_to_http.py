"""Labels the whole way: from a user's files and model over training or quantizing to the answers of the service."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import BertForSequenceClassification

from q8core.checkpoint import Checkpoint
from service.http.app import create_app
from service.lifecycle import State
from service.models.registry import ModelRegistry
from service.settings import Settings
from tests.conftest import WORDS, save_tiny

TOPICS = [word for word in WORDS if len(word) > 4][:12]


def knowing_model(folder: Path, labels: tuple[str, ...], topics: list[str]) -> Path:
    """A classifier of the topic words: output k is the topic that stands at k.

    Its encoder is random; the head is fitted to its pooled states by least squares, which is exact for so few texts.
    """
    save_tiny(folder, "classify", labels=labels)
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with torch.no_grad():
        pooled = torch.cat([model.bert(input_ids=torch.tensor([tokenizer.encode(topic).ids]))[1] for topic in topics])
        design = torch.cat([pooled, torch.ones(len(topics), 1)], dim=1).double()
        wanted = 12 * torch.eye(len(topics), dtype=torch.float64) - 6
        fitted = torch.linalg.lstsq(design, wanted).solution.float()
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.weight"], tensors["classifier.bias"] = fitted[:-1].T.contiguous(), fitted[-1].contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_data(folder: Path, rows: list[tuple[str, str]]) -> list[object]:
    for name in ("train.csv", "dev.csv"):
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    return ["--task", "classify", "--train-file", folder / "train.csv", "--dev-file", folder / "dev.csv"]


def served(checkpoint: Path, texts: list[str]) -> dict[str, list[str]]:
    registry = ModelRegistry.open((checkpoint,), ("fp32", "int8"), "auto", threads=1)
    with TestClient(create_app(Settings(threads=1), registry)) as client:
        assert client.app.state.service.lifecycle.wait_until_settled(240) is State.READY  # pyright: ignore
        answers = {
            backend: client.post("/classify", json={"inputs": texts, "backend": backend}).json()
            for backend in ("fp32", "int8")
        }
    return {backend: [row[0]["label"] for row in rows] for backend, rows in answers.items()}


KINDS = {
    "names": [f"about {topic}" for topic in TOPICS],
    "shuffled names": random.Random(3).sample([f"about {topic}" for topic in TOPICS], len(TOPICS)),
    "numbers": [str(k) for k in range(len(TOPICS))],
    "shuffled numbers": [str(k) for k in random.Random(4).sample(range(len(TOPICS)), len(TOPICS))],
    "generic": [f"LABEL_{k}" for k in range(len(TOPICS))],
}


@pytest.mark.parametrize(
    ("kind", "command"),
    [*((kind, "train") for kind in KINDS), ("shuffled names", "quantize"), ("generic", "quantize")],
)
def test_a_label_means_the_same_from_file_to_answer(run, kind: str, command: str, tmp_path: Path) -> None:
    outputs = KINDS[kind]
    source = knowing_model(tmp_path / "source", tuple(outputs), TOPICS)
    data_labels = [label.removeprefix("LABEL_") for label in outputs]
    rows = list(zip(TOPICS, data_labels, strict=True)) * 3
    random.Random(1).shuffle(rows)
    data, output, scores = write_data(tmp_path, rows), tmp_path / "int8", tmp_path / "scores.json"
    more = ["--max-steps", 1, "--learning-rate", 1e-7, "--precision", "fp32"] if command == "train" else []
    code, _, err = run(command, "--model", source, "--output", output, *data, *more)
    assert code == 0, err
    assert Checkpoint.open(output).labels == tuple(data_labels)
    evaluate = ["evaluate", "--task", "classify", "--dev-file", tmp_path / "dev.csv", "--json", scores]
    for checkpoint, backend in ((output, "int8"), (output, "fp32"), (source, "fp32")):
        code, _, err = run(*evaluate, "--checkpoint", checkpoint, "--backend", backend)
        assert code == 0, err
        assert json.loads(scores.read_text())["scores"] == {backend: {"accuracy": 1.0}}, (checkpoint, backend)
    for backend, answers in served(output, TOPICS).items():
        assert answers == data_labels, backend


def test_a_new_head_answers_with_the_datas_numbers_in_their_order(run, tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", "classify")
    BertForSequenceClassification.from_pretrained(source).bert.save_pretrained(source)
    labels = [str(k) for k in range(len(TOPICS))]
    data = write_data(tmp_path, list(zip(TOPICS, labels, strict=True)) * 6)
    fp32, int8 = tmp_path / "fp32", tmp_path / "int8"
    training = ["--epochs", 25, "--learning-rate", 2e-3, "--batch-size", 12, "--precision", "fp32"]
    code, _, err = run("train", "--model", source, "--output", fp32, "--scheme", "fp32", *data, *training)
    assert code == 0, err
    code, _, err = run("quantize", "--model", fp32, "--output", int8, *data)
    assert code == 0, err
    assert Checkpoint.open(int8).labels == tuple(labels)
    assert served(int8, TOPICS) == {"fp32": labels, "int8": labels}


def test_the_option_settles_what_names_do_not_say(run, tmp_path: Path) -> None:
    source = knowing_model(tmp_path / "source", tuple(f"LABEL_{k}" for k in range(3)), TOPICS[:3])
    data = write_data(tmp_path, list(zip(TOPICS[:3], ("red", "green", "blue"), strict=True)) * 4)
    for command in ("train", "quantize"):
        code, _, err = run(command, "--model", source, "--output", tmp_path / "out", *data)
        assert code == 2
        assert "the model answers LABEL_0, LABEL_1, LABEL_2, the data has blue, green, red" in err
        assert not (tmp_path / "out").exists()
    code, _, err = run("evaluate", "--checkpoint", source, "--backend", "fp32", *data[:2], *data[4:])
    assert code == 2
    assert "--labels" in err
    settled = ["--labels", "red,green,blue"]
    code, _, err = run("quantize", "--model", source, "--output", tmp_path / "out", *data, *settled)
    assert code == 0, err
    assert served(tmp_path / "out", TOPICS[:3])["int8"] == ["red", "green", "blue"]
    code, out, err = run("evaluate", "--checkpoint", source, "--backend", "fp32", *data[:2], *data[4:], *settled)
    assert (code, "accuracy 1.0000" in out) == (0, True), err
