"""``q8bert import`` as a user types it, and what the other commands make of the result."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import BertForSequenceClassification

from tests.importing.hub_folders import change_json, copied, pickled


def as_on_the_hub(source: Path, folder: Path) -> Path:
    """A fine-tuned classifier of years ago: a pickle in half precision and vocab.txt."""
    model = BertForSequenceClassification.from_pretrained(source).half()
    pickled(source, folder, tensors=model.state_dict())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    change_json(folder / "config.json", torch_dtype="float16", dtype=None)
    return folder


def test_the_result_is_taken_by_the_other_commands(run, tiny_classifier: Path, tmp_path: Path) -> None:
    folder, output, report = (
        as_on_the_hub(tiny_classifier, tmp_path / "old"),
        tmp_path / "new",
        tmp_path / "report.json",
    )
    code, _, err = run("serve", "--checkpoint", folder, "--backends", "fp32", "--dry-run")
    assert code == 3
    assert f"`q8bert import {folder} --output DIR`" in err
    code, out, err = run("import", folder, "--output", output, "--json", report)
    assert code == 0, err
    for words in (
        "weights: pytorch_model.bin, F16 written as float32",
        "tokenizer: tokenizer.json made of vocab.txt by transformers' BertTokenizer; nothing in the folder says",
        "compared: 20 inputs, logits; transformers (from the original weights) and the fp32 engine differ by at most",
        f"{output}: BertForSequenceClassification, ready for quantize, evaluate, serve and train",
    ):
        assert words in out
    found = json.loads(report.read_text())
    assert (found["source"], found["folder"], found["pickled"]) == (str(folder), str(output), True)
    assert found["proof"]["largest_difference"] <= 1e-4
    code, out, err = run("serve", "--checkpoint", output, "--backends", "fp32", "--dry-run")
    assert code == 0, err
    (tmp_path / "data.csv").write_text("text,label\n" + "a good film,positive\nan awful film,negative\n" * 8)
    data = ["--task", "classify", "--dev-file", tmp_path / "data.csv"]
    for command in (
        ["evaluate", *data, "--checkpoint", output, "--backend", "fp32"],
        ["quantize", *data, "--model", output, "--scheme", "dynamic", "--output", tmp_path / "int8"],
        ["train", *data, "--train-file", tmp_path / "data.csv", "--model", output, "--max-steps", 1, "--scheme", "fp32",
         "--output", tmp_path / "fp32"],
    ):  # fmt: skip
        code, _, err = run(*command)
        assert code == 0, (command, err)


def test_an_encoder_without_a_head(run, tiny_classifier: Path, tmp_path: Path) -> None:
    folder = copied(tiny_classifier, tmp_path / "encoder")
    BertForSequenceClassification.from_pretrained(tiny_classifier).bert.save_pretrained(folder)
    code, out, err = run("import", folder, "--output", tmp_path / "new")
    assert code == 0, err
    assert "hidden states (no head: through a random one)" in out
    assert "BertModel, without a head: ready for train" in out


def test_errors_are_one_sentence_and_a_code(run, tiny_classifier: Path, tmp_path: Path) -> None:
    broken = pickled(tiny_classifier, tmp_path / "broken", tensors={"a": torch.nn.Linear(2, 2)})
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    for source, output, expected, words in (
        (broken, "new", 3, "pytorch_model.bin is refused: loading it would run code or build objects"),
        (tiny_classifier, "used", 2, "is there already; --output names a folder that does not exist yet, or is empty"),
        ("nobody/nothing", "new", 2, "'nobody/nothing' is no folder, and the hub cannot be reached"),
    ):
        code, out, err = run("import", source, "--output", tmp_path / output)
        assert (code, out) == (expected, ""), err
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert words in line
        assert "Traceback" not in err
        assert not (tmp_path / "new").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
