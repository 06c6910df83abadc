"""Pairs and regression as a user trains, quantizes, scores and serves them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoTokenizer, BertForSequenceClassification, TextClassificationPipeline

from q8core.checkpoint import Checkpoint
from q8core.tasks.glue import read_glue
from service.http.app import create_app
from service.lifecycle import State
from service.models.registry import ModelRegistry
from service.settings import Settings
from tests.conftest import save_tiny
from tests.tasks.glue_files import write_glue

TRAIN = ["--precision", "fp32", "--dropout", 0, "--epochs", 12, "--learning-rate", 1e-3, "--batch-size", 8]


def pairs(labels: tuple[str, str]) -> list[tuple[str, str, str]]:
    """Only the second text tells the label."""
    draw = random.Random(1)
    sides = (("good", "great"), ("bad", "awful"))
    return [
        (f"a {draw.choice(sides[i // 2 % 2])} film", f"a {draw.choice(sides[i % 2])} film {i}", labels[i % 2])
        for i in range(32)
    ]


def scored_pairs() -> list[tuple[str, str, str]]:
    words = ["dog", "cat", "film", "river", "tower"]
    return [
        (f"the {' '.join(words)}", f"a {' '.join(['good'] * n + words[n:])}", f"{5 - n:.3f}")
        for n in range(6)
        for _ in range(6)
    ]


def test_a_pair_task_from_training_to_serving(run, tiny_classifier: Path, tmp_path: Path) -> None:
    data = write_glue(tmp_path / "data", "mrpc", pairs(("1", "0")))
    task = ["--task", "mrpc", "--data", data]
    fp32, int8, scores = tmp_path / "fp32", tmp_path / "int8", tmp_path / "scores.json"
    other = ["train", "--model", tiny_classifier, "--output", fp32, "--scheme", "fp32", *task, *TRAIN]
    code, _, err = run(*other)
    assert code == 2
    assert "answers negative, positive, the data has not_equivalent, equivalent: which is which" in err
    code, _, err = run(*other, "--labels", "equivalent,not_equivalent")
    assert code == 0, err
    code, _, err = run("train", "--model", fp32, "--output", int8, *task, "--precision", "fp32", "--max-steps", 4)
    assert code == 0, err
    code, _, err = run("evaluate", "--checkpoint", int8, *task, "--json", scores)
    assert code == 0, err
    assert json.loads(scores.read_text())["scores"]["int8"] == {"f1": 1.0, "accuracy": 1.0}
    assert json.loads((int8 / "q8bert.json").read_text())["scores"]["metric"] == "f1"
    with TestClient(serve(int8)) as client:
        assert client.app.state.service.lifecycle.wait_until_settled(240) is State.READY
        inputs = [{"text": text, "text_pair": pair} for text, pair, _ in pairs(("1", "0"))]
        answer = client.post("/classify", json={"inputs": inputs}).json()
    predicted = [int(row[0]["label"] == "equivalent") for row in answer]
    expected = [example.label for example in read_glue("mrpc", data).dev]
    assert (accuracy_score(expected, predicted), f1_score(expected, predicted)) == (1.0, 1.0)


def serve(checkpoint: Path):
    return create_app(Settings(threads=1), ModelRegistry.open((checkpoint,), ("fp32", "int8"), "auto", threads=1))


@pytest.fixture(scope="module")
def stsb_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_glue(tmp_path_factory.mktemp("stsb"), "stsb", scored_pairs())


def test_regression_from_training_to_serving(run, stsb_data: Path, tiny_classifier: Path, tmp_path: Path) -> None:
    task = ["--task", "stsb", "--data", stsb_data]
    fp32, int8, post = (tmp_path / name for name in ("fp32", "int8", "post"))
    pretrained = headless(tiny_classifier, tmp_path / "pretrained")
    code, out, err = run("train", "--model", pretrained, "--output", fp32, "--scheme", "fp32", *task, *TRAIN)
    assert code == 0, err
    assert "pearson 0.9" in out
    config = json.loads((fp32 / "config.json").read_text())
    assert (config["problem_type"], config["id2label"]) == ("regression", {"0": "LABEL_0"})
    code, out, err = run("train", "--model", fp32, "--output", int8, *task, *TRAIN, "--max-steps", 4)
    assert code == 0, err
    for scheme in ("dynamic", "static"):
        code, out, err = run("quantize", "--model", fp32, "--output", post, "--scheme", scheme, *task)
        assert code == 0, err
        assert "int8: pearson 0.9" in out
    logits = hugging_face_values(fp32)
    expected = [float(score) for _, _, score in scored_pairs()]
    oracle = {"pearson": pearsonr(logits, expected).statistic, "spearman": spearmanr(logits, expected).statistic}
    scores = tmp_path / "scores.json"
    code, out, err = run("evaluate", "--checkpoint", fp32, *task, "--backend", "fp32", "--json", scores)
    assert code == 0, err
    assert json.loads(scores.read_text())["scores"]["fp32"] == pytest.approx(oracle, abs=1e-4)
    found: list[dict[str, float]] = []
    for kernel in ("native", "onednn", "fbgemm"):
        code, out, err = run("evaluate", "--checkpoint", int8, *task, "--kernel", kernel, "--json", scores)
        assert code == 0, err
        found.append(json.loads(scores.read_text())["scores"]["int8"])
    assert min(each["pearson"] for each in found) > 0.9
    assert found[1:] == [pytest.approx(found[0], abs=1e-3)] * 2
    code, out, err = run("info", int8)
    card = json.loads(out)
    assert (card["problem_type"], card["labels"], card["scores"]["metric"]) == ("regression", ["LABEL_0"], "pearson")
    assert Checkpoint.open(int8).golden[0].logits["int8"]
    check_served_values(int8)


def check_served_values(checkpoint: Path) -> None:
    """The service answers what Hugging Face's own pipeline answers: the raw value as score of LABEL_0."""
    pipeline = TextClassificationPipeline(
        model=BertForSequenceClassification.from_pretrained(checkpoint).eval(),
        tokenizer=AutoTokenizer.from_pretrained(checkpoint),
    )
    inputs = [{"text": text, "text_pair": pair} for text, pair, _ in scored_pairs()[::6]]
    expected = [pipeline(each, top_k=None) for each in inputs]
    with TestClient(serve(checkpoint)) as client:
        assert client.app.state.service.lifecycle.wait_until_settled(240) is State.READY
        answer = client.post("/classify", json={"inputs": inputs, "backend": "fp32"}).json()
        assert [[row["label"] for row in rows] for rows in answer] == [["LABEL_0"]] * len(inputs)
        values = [rows[0]["score"] for rows in answer]
        assert values == pytest.approx([rows[0]["score"] for rows in expected], abs=1e-4)
        assert max(values) > 1  # no probability
        (facts,) = client.get("/info").json()["models"].values()
    assert (facts["problem_type"], facts["labels"]) == ("regression", ["LABEL_0"])


def headless(folder: Path, output: Path) -> Path:
    """A pretrained model without a classification head."""
    BertForSequenceClassification.from_pretrained(folder).bert.save_pretrained(output)
    AutoTokenizer.from_pretrained(folder).save_pretrained(output)
    return output


def hugging_face_values(folder: Path) -> list[float]:
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return [float(model(**tokenizer(a, b, return_tensors="pt")).logits[0, 0]) for a, b, _ in scored_pairs()]


def test_tasks_that_do_not_fit_a_regression_are_refused(run, stsb_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_regression(folder)
    own = tmp_path / "own.csv"
    own.write_text("text,label\nx,1\ny,0\n")
    pairs_data = write_glue(tmp_path / "rte", "rte", pairs(("entailment", "not_entailment")))
    classify = ["--task", "classify", "--dev-file", own]
    for arguments, words in (
        (["evaluate", "--checkpoint", folder, "--backend", "fp32", *classify], "the model predicts a number"),
        (["quantize", "--model", folder, "--output", tmp_path / "x", *classify, "--train-file", own], "a number"),
        (["evaluate", "--checkpoint", folder, "--backend", "fp32", "--task", "rte", "--data", pairs_data], "LABEL_0"),
    ):
        code, _, err = run(*arguments)
        assert code == 2, err
        assert words in err.replace("\n", " ")
    code, _, err = run("evaluate", "--checkpoint", folder, "--backend", "fp32", "--task", "stsb", "--data", stsb_data)
    assert code == 0, err


def save_regression(folder: Path, problem: str | None = "regression") -> None:
    save_tiny(folder, "classify", labels=("LABEL_0",))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "problem_type": problem}))


@pytest.mark.parametrize("problem", [None, "multi_label_classification"])
def test_one_output_that_is_no_regression_is_refused(run, tmp_path: Path, problem: str | None) -> None:
    save_regression(tmp_path / "model", problem)
    code, _, err = run("serve", "--checkpoint", tmp_path / "model", "--backends", "fp32", "--dry-run")
    assert code == 3, err
    assert f"problem_type in config.json is {problem!r}" in err.replace("\n", " ")
    assert "Traceback" not in err
