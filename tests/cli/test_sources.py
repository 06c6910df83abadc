"""The commands on users' own folders and options: the same reason everywhere, and nothing dropped silently."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertForSequenceClassification

from q8core.say_once import warn_once
from tests.conftest import save_tiny
from tests.source_folders import VARIANTS, make_variant
from tests.tasks.glue_files import write_glue

BAD = [name for name, variant in VARIANTS.items() if variant.refused]
ROWS = "text,label\n" + "a good film,positive\nan awful film,negative\n" * 8


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data.csv").write_text(ROWS)
    return tmp_path / "data.csv"


@pytest.fixture(autouse=True)
def nothing_said_yet() -> None:
    warn_once.cache_clear()


def commands(folder: Path, data: Path, output: Path) -> dict[str, list[object]]:
    train, dev, step = ["--train-file", data], ["--task", "classify", "--dev-file", data], ["--max-steps", 1]
    return {
        "train fp32": ["train", *dev, *train, "--model", folder, *step, "--scheme", "fp32", "--output", output],
        "train": ["train", *dev, *train, "--model", folder, *step, "--output", output],
        "quantize": ["quantize", *dev, *train, "--model", folder, "--output", output],
        "quantize dynamic": ["quantize", *dev, "--model", folder, "--scheme", "dynamic", "--output", output],
        "evaluate": ["evaluate", *dev, "--checkpoint", folder, "--backend", "fp32"],
        "serve": ["serve", "--checkpoint", folder, "--backends", "fp32", "--dry-run"],
    }  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_every_command_refuses_a_source_for_the_same_reason(
    run, name: str, tiny_classifier: Path, data: Path, tmp_path: Path
) -> None:
    folder = make_variant(tiny_classifier, tmp_path / "it", name)
    reasons: set[str] = set()
    for command, arguments in commands(folder, data, tmp_path / "out").items():
        code, out, err = run(*arguments)
        assert (code, out) == (3, ""), (command, err)
        reasons.add(next(line for line in err.splitlines() if line.startswith("error: ")))
        assert not (tmp_path / "out" / "config.json").exists()
    assert len(reasons) == 1, reasons
    assert re.search(VARIANTS[name].refused, reasons.pop())


@pytest.mark.parametrize("name", ["parallel", "old norms", "bfloat16", "float16"])
def test_every_command_takes_what_can_be_undone_and_says_so(
    run, name: str, tiny_classifier: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, output = make_variant(tiny_classifier, tmp_path / "it", name), tmp_path / "out"
    for command, arguments in commands(folder, data, output).items():
        shutil.rmtree(output, ignore_errors=True)
        warn_once.cache_clear()
        caplog.clear()
        code, _, err = run(*arguments)
        assert code == 0, (command, err)
        assert re.search(VARIANTS[name].said, caplog.text + err), (command, err)
        if "--output" in arguments:
            assert {tensor.dtype for tensor in load_file(output / "model.safetensors").values()} == {torch.float32}
            assert json.loads((output / "config.json").read_text())["dtype"] == "float32"
            assert set(load_file(output / "model.safetensors")) == set(load_file(tiny_classifier / "model.safetensors"))


@pytest.mark.parametrize("command", ["train", "quantize", "quantize dynamic", "evaluate", "serve"])
def test_a_tokenizer_larger_than_the_model_is_refused_by_every_command(
    run, command: str, data: Path, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "it", "classify")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[E1]"]})
    tokenizer.save_pretrained(folder)
    code, _, err = run(*commands(folder, data, tmp_path / "out")[command])
    assert code == 3
    assert "beyond it: '[E1]'" in err


@pytest.mark.parametrize("command", ["train", "quantize", "quantize dynamic", "evaluate"])
def test_pairs_for_a_model_with_one_token_type_are_refused_by_every_command(
    run, command: str, data: Path, tiny_classifier: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_classifier, tmp_path / "it"))
    name = "bert.embeddings.token_type_embeddings.weight"
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: tensors[name][:1].clone()}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "type_vocab_size": 1}))
    data.write_text(ROWS.replace("film,", "film,a plot,").replace("text,", "text,other,"))
    asked = commands(folder, data, tmp_path / "out")[command]
    code, _, err = run(*asked, "--pair-column", "other")
    assert code == 2
    assert "takes single texts only: it has one token type" in err
    code, _, err = run(*asked)
    assert code == 0, err


def test_what_several_labels_and_scores_of_pairs_can_and_cannot(run, data: Path, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "it", "classify")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "problem_type": "multi_label_classification"}))
    asked = commands(folder, data, tmp_path / "out")
    for name in ("train", "train fp32"):
        code, _, err = run(*asked[name])
        assert code == 2
        assert "training that is not supported yet; it can be served, and quantized and scored" in err
    for name in ("quantize", "evaluate"):
        code, _, err = run(*asked[name])
        assert code == 0, err
    data.write_text('text,label\na film,"positive,negative"\na cat,\n')
    for name in ("quantize dynamic", "evaluate"):
        code, _, err = run(*asked[name])
        assert code == 2
        assert "several labels a text are not supported yet" in err
    scorer = save_tiny(tmp_path / "scorer", "classify", labels=("LABEL_0",))
    for name, arguments in commands(scorer, data, tmp_path / "out").items():
        code, _, err = run(*arguments)
        assert code == 3, name
        assert "That of a cross-encoder (reranker) is a score, which is not supported yet" in err


def test_options_of_another_task_or_scheme_are_refused(run, data: Path, tiny_classifier: Path, tmp_path: Path) -> None:
    official = write_glue(tmp_path / "sst2", "sst2", [("good film", "", "1"), ("bad film", "", "0")] * 8)
    sst2 = ["--task", "sst2", "--data", official]
    own = ["--task", "classify", "--train-file", data, "--dev-file", data]
    here = ["--model", tiny_classifier, "--output", tmp_path / "out"]
    for arguments, words in (
        (["train", *here, *sst2, "--train-file", data], "--train-file .*data.csv does not go with --task sst2"),
        (["train", *here, *sst2, "--dev-file", "absent.csv"], "--dev-file absent.csv does not go with"),
        (["train", *here, *sst2, "--text-column", "text"], "--text-column text does not go with"),
        (["quantize", *here, *sst2, "--pair-column", "b"], "--pair-column b does not go with"),
        (["quantize", *here, *sst2, "--label-column", "b"], "which reads the official files in --data"),
        (["train", *here, *own, "--data", official], "--data .* with --task classify, which reads your own"),
        (["quantize", *here, *own, "--scheme", "dynamic"], "--train-file .* is not used: a dynamic scheme"),
        (["quantize", *here, *sst2, "--scheme", "dynamic", "--calibration-examples", 7], "-examples 7 is"),
        (["quantize", *here, *sst2, "--scheme", "dynamic", "--seed", 0], "--seed 0 is for calibration"),
        (["train", *here, *own, "--scheme", "fp32", "--int8-only"], "--int8-only is for int8 checkpoints"),
        (["evaluate", "--checkpoint", tiny_classifier, "--backend", "fp32", "--kernel", "native", *sst2],
         "--kernel native is for the backend int8"),
        (["evaluate", "--checkpoint", tiny_classifier, *sst2, "--dev-file", data], "--dev-file .* does not go with"),
        (["train", *here, "--task", "stsb", "--data", official, "--labels", "a,b"], "stsb predicts a number"),
    ):  # fmt: skip
        code, _, err = run(*arguments)
        assert code == 2, (arguments, err)
        assert re.search(words, err), err
        assert not (tmp_path / "out").exists()


def test_cut_texts_are_counted_in_the_log_and_the_reports(
    run, tiny_classifier: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the last words, behind 100 others, tell the label: they count where the model's own length is read."""
    rows = [(f"{'a film was in the city ' * 17}it was {word}", label)
            for word, label in (("good", "positive"), ("awful", "negative"))]  # fmt: skip
    data.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows * 5))
    scores = tmp_path / "scores.json"
    evaluate = [
        "evaluate",
        "--task",
        "classify",
        "--dev-file",
        data,
        "--checkpoint",
        tiny_classifier,
        "--backend",
        "fp32",
    ]
    code, _, err = run(*evaluate, "--json", scores)
    assert (code, json.loads(scores.read_text())["cut"]) == (0, 0), err
    code, _, err = run(*evaluate, "--json", scores, "--max-length", 32)
    assert (code, json.loads(scores.read_text())["cut"]) == (0, 10), err
    assert "10 of 10 dev texts are cut: longer than 32 tokens (--max-length)" in caplog.text
    own = ["--task", "classify", "--train-file", data, "--dev-file", data, "--model", tiny_classifier]
    for arguments, length, number in (
        (["quantize", *own], 128, 0),
        (["quantize", *own, "--max-length", 64], 64, 10),
        (["train", *own, "--max-steps", 1, "--max-length", 32], 32, 10),
    ):
        output = tmp_path / f"out-{length}"
        code, _, err = run(*arguments, "--output", output)
        assert code == 0, err
        manifest = json.loads((output / "q8bert.json").read_text())
        assert manifest["max_length"] == length
        training = manifest["training"]
        assert training["cut"]["dev"] == number
        learned = training["calibration"]["cut"] if arguments[0] == "quantize" else training["cut"]["training"]
        assert learned == number


def test_thousands_of_classes_make_a_checkpoint_that_opens(run, tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "it", "classify")
    BertForSequenceClassification.from_pretrained(source).bert.save_pretrained(source)
    names = [f"class {k}" for k in range(18_000)]
    (tmp_path / "data.csv").write_text("text,label\n" + "".join(f"a film,{name}\n" for name in names))
    (tmp_path / "dev.csv").write_text("text,label\n" + "".join(f"a {'good ' * k}film,{names[k]}\n" for k in range(9)))
    data = ["--task", "classify", "--train-file", tmp_path / "data.csv", "--dev-file", tmp_path / "dev.csv"]
    train = ["train", *data, "--model", source, "--max-steps", 1, "--evals", 1, "--int8-only"]
    code, _, err = run(*train, "--output", tmp_path / "out")
    assert code == 0, err
    code, out, err = run("info", tmp_path / "out")
    assert (code, len(json.loads(out)["labels"])) == (0, 18_000), err
    assert 1 <= json.loads(out)["golden_inputs"] < 8
