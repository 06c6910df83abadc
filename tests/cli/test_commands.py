"""The commands as a user types them: arguments in, files and exit codes out."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from transformers import BertForSequenceClassification

from q8core.checkpoint.manifest import INT8_FILE
from q8core.errors import EngineError
from q8core.quant.ops import passes
from service.http.app import create_app
from service.lifecycle import State
from service.models.registry import ModelRegistry
from service.settings import Settings
from tests.conftest import save_tiny
from tests.service.tiny_checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = ["text,intent"]
    rows += [f'"a {word}, very {word} film {i}",{label}' for i in range(8) for word, label in
             (("good", "praise"), ("great", "praise"), ("awful", "blame"), ("boring", "blame"))]  # fmt: skip
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    (folder / "dev.csv").write_text("\n".join(rows[:9]) + "\n")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of the same labels."""
    return save_tiny(tmp_path_factory.mktemp("source") / "model", "classify", labels=("blame", "praise"))


@pytest.fixture(scope="module")
def pretrained(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same encoder without a head."""
    folder = Path(shutil.copytree(source, tmp_path_factory.mktemp("pretrained") / "model"))
    BertForSequenceClassification.from_pretrained(source).bert.save_pretrained(folder)
    return folder


def own_data(folder: Path) -> list[object]:
    files = ["--train-file", folder / "train.csv", "--dev-file", folder / "dev.csv"]
    return ["--task", "classify", *files, "--label-column", "intent"]


def test_own_data_from_training_to_scores(run, data: Path, source: Path, tmp_path: Path) -> None:
    fp32, int8, post = tmp_path / "fp32", tmp_path / "int8", tmp_path / "post"
    common = [*own_data(data), "--precision", "fp32", "--epochs", 12, "--learning-rate", 1e-3, "--batch-size", 4]
    code, out, err = run("train", "--model", source, "--output", fp32, "--scheme", "fp32", *common)
    assert code == 0, err
    assert "accuracy 1.0000" in out
    code, out, err = run("train", "--model", fp32, "--output", int8, *common[:-6], "--epochs", 1, "--int8-only")
    assert code == 0, err
    code, out, err = run("quantize", "--model", fp32, "--output", post, *own_data(data))
    assert code == 0, err
    scores = tmp_path / "scores.json"
    dev = ["--task", "classify", "--dev-file", data / "dev.csv", "--label-column", "intent"]
    both = ["--backend", "fp32", "--backend", "int8", "--json", scores]
    for checkpoint in (int8, post):
        code, out, err = run("evaluate", "--checkpoint", checkpoint, *dev, *both)
        assert code == 0, err
        assert json.loads(scores.read_text())["scores"] == {"fp32": {"accuracy": 1.0}, "int8": {"accuracy": 1.0}}
    code, out, err = run("info", int8)
    assert code == 0, err
    card = json.loads(out)
    assert (card["kind"], card["labels"], card["scheme"]) == ("int8", ["blame", "praise"], "q8bert")
    assert (card["bits"], card["here"]["bits"]) == ("8-8-8", "8-8-8")
    assert card["training"]["base_record"]["scores"] == {"accuracy": 1.0}
    assert "model.safetensors" not in card["files"]
    here = card["here"]
    assert here["kernel_choice"] in ("preferred", "measured", "cached", "disturbed")
    assert all(set(times) == {"16", "128"} for times in here["kernel_microseconds"].values())
    assert here["weights_memory"] == ("shared" if here["kernel"] == "native" else "private")
    assert here["kernels_refused"] == {}
    code, out, err = run("info", post, "--kernel", "native")
    assert code == 0, err
    here = json.loads(out)["here"]
    assert (here["kernel"], here["kernel_choice"], here["weights_memory"]) == ("native", "given", "shared")
    code, out, err = run("info", fp32)
    assert code == 0, err
    here = json.loads(out)["here"]
    assert (here["backend"], here["weights_memory"]) == ("fp32", "private")


def test_info_tells_why_a_checkpoint_does_not_run_here(run, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", "qa")
    manifest = json.loads((folder / "q8bert.json").read_text())
    code, out, err = run("info", folder, "--kernel", "onednn")
    assert code == 0, err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("q8core.engines.choice.int8_kernels.variants", missing_library)
        code, out, err = run("info", folder, "--kernel", "native")
        assert code == 0, err
        card = json.loads(out)
        assert card["here"] == {"backend": "int8", "error": "the native kernel was not built"}
        assert card["files"].keys() == manifest["files"].keys()
        code, out, err = run("info", folder)
        assert json.loads(out)["here"]["kernels_refused"] == {"native": "the native kernel was not built"}


def missing_library() -> None:
    raise EngineError("the native kernel was not built")


def test_the_version_is_that_of_the_package(run) -> None:
    code, out, err = run("--version")
    assert code == 0, err
    assert out == f"q8bert {version('q8bert')}\n"


def test_quantized_attention_products_from_training_to_serving(
    run, data: Path, pretrained: Path, tmp_path: Path
) -> None:
    trained, post, scores = tmp_path / "trained", tmp_path / "post", tmp_path / "scores.json"
    recipe = ["--precision", "bf16", "--epochs", 12, "--learning-rate", 1e-3, "--batch-size", 4, "--dropout", 0.1]
    train = ["train", "--model", pretrained, "--output", trained, "--scheme", "q8bert-attention"]
    code, out, err = run(*train, *own_data(data), *recipe)
    assert code == 0, err
    quantize = ["quantize", "--model", trained, "--output", post, "--scheme", "static-attention"]
    code, out, err = run(*quantize, *own_data(data))
    assert code == 0, err
    dev = ["--task", "classify", "--dev-file", data / "dev.csv", "--label-column", "intent"]
    for checkpoint, scheme in ((trained, "q8bert-attention"), (post, "static-attention")):
        code, out, err = run("evaluate", "--checkpoint", checkpoint, *dev, "--json", scores)
        assert code == 0, err
        assert json.loads(scores.read_text())["scores"] == {"int8": {"accuracy": 1.0}}
        code, out, err = run("info", checkpoint)
        assert (code, json.loads(out)["scheme"]) == (0, scheme)
    registry = ModelRegistry.open((trained,), ("fp32", "int8"), kernel="auto", threads=1)
    with TestClient(create_app(Settings(threads=1), registry)) as client:
        assert client.app.state.service.lifecycle.wait_until_settled(240) is State.READY
        for backend in ("int8", "fp32"):
            answer = client.post("/classify", json={"inputs": "a great, very great film", "backend": backend})
            assert answer.json()[0][0]["label"] == "praise"


def test_squad_from_training_to_scores(run, tiny_qa: Path, tmp_path: Path) -> None:
    qas = [{"id": str(i), "question": "who sat?", "answers": [{"text": "cat", "answer_start": 4}]} for i in range(4)]
    document = {"data": [{"paragraphs": [{"context": "the cat sat on the mat. " * 9, "qas": qas}]}]}
    for name in ("train", "dev"):
        (tmp_path / f"{name}-v1.1.json").write_text(json.dumps(document))
    squad = ["--task", "squad", "--data", tmp_path, "--max-length", 40]
    train = ["--batch-size", 2, "--epochs", 3, "--learning-rate", 2e-3, "--precision", "fp32"]
    # a source with random weights has nothing to teach, as it would by the bundled recipe
    (tmp_path / "squad.toml").write_text("[fp32]\nepochs = 3.0\n[qat]\nepochs = 3.0\nevals = 2\n")
    train += ["--recipes", tmp_path]
    code, out, err = run("train", "--model", tiny_qa, "--output", tmp_path / "int8", *squad, *train)
    assert code == 0, err
    assert "f1 100.0000" in out
    code, out, err = run("evaluate", "--checkpoint", tmp_path / "int8", *squad)
    assert code == 0, err
    assert "exact_match 100.0000" in out


def test_training_says_that_it_goes_without_the_native_library(
    run, data: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ["train", "--model", source, *own_data(data), "--max-steps", "1", "--precision", "fp32"]
    assert "slower passes" not in run(*train, "--output", tmp_path / "native")[2]
    monkeypatch.setattr(passes, "_library", lambda: None)
    code, _, err = run(*train, "--output", tmp_path / "torch")
    assert code == 0
    assert "note: the native library is not there" in err


def test_wrong_arguments_are_one_sentence_and_a_code(
    run, data: Path, source: Path, pretrained: Path, tiny_classifier: Path, tmp_path: Path
) -> None:
    here = ["--model", source, "--output", tmp_path / "x"]
    for arguments, words in (
        (["train", *here, "--task", "sst3", "--data", data], "unknown task 'sst3'; allowed: cola, mrpc"),
        (["train", *here, "--task", "sst2"], "needs --data"),
        (["train", *here, "--task", "sst2", "--data", data], "has neither train.tsv nor train.tsv.gz"),
        (["train", *here, "--task", "classify"], "--train-file and --dev-file"),
        (["train", *here, *own_data(data)[:-1], "label"], "no column 'label'; there are: 'text', 'intent'"),
        (["train", *here, *own_data(data), "--precision", "fp16"], "allowed: auto, fp32, bf16"),
        (["train", *here, *own_data(data), "--scheme", "q9"], "q9"),
        (["train", *here, *own_data(data), "--epochs", "0"], "epochs is 0"),
        (["train", *here, *own_data(data), "--scheme", "no.toml"], "no.toml cannot be read: No such file"),
        (["train", *here, "--model", pretrained, *own_data(data), "--distill-hidden", "0"],
          "--distill-hidden is 0.0, but it needs --teacher"),
        (["train", *here, *own_data(data), "--teacher", tiny_classifier],
          "the model answers negative, positive, the data has blame, praise"),
        (["train", *here, *own_data(data), "--max-length", "129"], "--max-length is 129; allowed: 8 to 128"),
        (["quantize", *here, *own_data(data), "--max-length", "7"], "--max-length is 7; allowed: 8 to 128"),
        (["quantize", "--model", pretrained, "--output", tmp_path / "x", *own_data(data)],
          "was not fine-tuned for this task"),
        (["quantize", "--model", pretrained, "--output", tmp_path / "x", *own_data(data), "--scheme", "dynamic"],
          "needed is BertForSequenceClassification; fine-tune it first"),
        (["quantize", *here, *own_data(data), "--scheme", "no.json"], "no.json cannot be read: No such file"),
        (["train", "--model", "no/such-model", "--output", tmp_path / "x", *own_data(data)], "no/such-model"),
        (["quantize", *here, *own_data(data), "--scheme", "q8bert"], "allowed: static, static-attention, dynamic"),
        (["evaluate", "--checkpoint", tiny_classifier, "--task", "squad", "--data", data], "made for classify"),
        (["evaluate", "--checkpoint", tiny_classifier, *own_data(data)[:2], "--dev-file", data / "dev.csv",
          "--label-column", "intent"], "the model answers negative, positive, the data has blame, praise"),
    ):  # fmt: skip
        code, _, err = run(*arguments)
        assert code in (2, 3), (arguments, err)
        assert words in err.replace("\n", " ")
        assert "Traceback" not in err
        assert not (tmp_path / "x" / "config.json").exists()


def test_a_damaged_checkpoint_has_its_own_code(run, tiny_classifier: Path, data: Path, tmp_path: Path) -> None:
    labels = ("blame", "praise")
    model = save_tiny(tmp_path / "model", "classify", labels=labels)
    code, _, err = run("quantize", "--model", model, "--output", tmp_path / "int8", *own_data(data))
    assert code == 0, err
    damaged = Path(shutil.copytree(tmp_path / "int8", tmp_path / "damaged"))
    content = bytearray((damaged / INT8_FILE).read_bytes())
    content[-5] ^= 255
    (damaged / INT8_FILE).write_bytes(content)
    for command in (["info", damaged], ["serve", "--checkpoint", damaged, "--dry-run"]):
        code, _, err = run(*command)
        assert code == 3
        assert "sha256" in err
        assert "Traceback" not in err


def test_int8_of_a_float_folder_names_the_way_out(run, data: Path, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", "classify", labels=("blame", "praise"))
    dev = ["--task", "classify", "--dev-file", data / "dev.csv", "--label-column", "intent"]
    code, out, err = run("evaluate", "--checkpoint", model, *dev)
    assert code == 3, err
    assert f"`q8bert quantize --model {model} ...`" in err
    assert "Traceback" not in err
    assert out == ""
    code, out, err = run("evaluate", "--checkpoint", model, *dev, "--backend", "fp32")
    assert code == 0, err
    assert "accuracy" in out
