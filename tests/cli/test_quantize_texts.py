"""``q8bert quantize --texts`` as a user types it: no labels, a gate, and a report that names layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertForSequenceClassification

from q8core.checkpoint import Checkpoint
from q8core.checkpoint.float_source import open_source
from q8core.engines import TokenBatch, load_engine
from tests.conftest import save_tiny

WORDS = ("good", "great", "awful", "boring", "film", "a", "very", "not")


def write_texts(folder: Path, count: int = 60) -> Path:
    file = folder / "texts.txt"
    file.write_text("".join(f"{WORDS[i % 8]} {WORDS[i // 8 % 8]} {WORDS[i // 3 % 8]} film\n" for i in range(count)))
    return file


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("source") / "model", "classify")


def ruined(source: Path, folder: Path, texts: Path) -> Path:
    """A model whose FFN's inner state has a few values that are far larger than the others."""
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    for leaf in ("weight", "bias"):
        tensors[f"bert.encoder.layer.1.intermediate.dense.{leaf}"][:3] *= 4000
    tensors["bert.encoder.layer.1.output.dense.weight"][:, :3] /= 4000
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model, tokenizer = (each.from_pretrained(folder) for each in (BertForSequenceClassification, AutoTokenizer))
    with torch.no_grad():  # half of the texts to each label, or none would change its own
        logits = model.eval()(**tokenizer(texts.read_text().splitlines(), return_tensors="pt", padding=True)).logits
    tensors["classifier.bias"][1] -= (logits[:, 1] - logits[:, 0]).median()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_texts_alone_make_a_checkpoint(run, texts: Path, classifier: Path, tmp_path: Path) -> None:
    output, report_file = tmp_path / "int8", tmp_path / "report.json"
    code, out, err = run(
        "quantize", "--model", classifier, "--texts", texts, "--output", output, "--json", report_file,
        "--target-agreement", 0.5,
    )  # fmt: skip
    assert code == 0, err
    assert "static: " in out
    assert "of 30 answers are those of fp32 (95 % interval" in out
    assert "layers that hurt most, each alone: " in out
    assert out.rstrip().endswith(f"{output}: static, passed 50.00%")
    report = json.loads(report_file.read_text())
    assert report["passed"]
    assert report["written"] == "static"
    assert report["texts"] == {"calibration": 30, "compared": 30}
    assert [one["scheme"] for one in report["tried"]] == ["static"]
    checkpoint = Checkpoint.open(output)
    assert set(report["layers"]) == {p for p, site in checkpoint.plan.sites.items() if site.weight is not None}
    assert list(report["layers"].values()) == sorted(report["layers"].values(), reverse=True)
    assert checkpoint.manifest is not None
    assert checkpoint.manifest.scores["metric"] == "agreement"
    assert checkpoint.manifest.training["tried"] == report["tried"]
    for backend in ("int8", "fp32"):
        logits = load_engine(checkpoint, backend).infer(TokenBatch.pack([([2, 5, 6, 3], [0] * 4)]))
        assert logits.shape == (1, 2)


def test_what_int8_ruins_is_refused_with_its_layer(run, texts: Path, classifier: Path, tmp_path: Path) -> None:
    model, output = ruined(classifier, tmp_path / "ruined", texts), tmp_path / "int8"
    plain = tmp_path / "plain.toml"
    plain.write_text('base = "static"\nlinears.input = { smoothing = 0.0 }\n')
    wanted = ["quantize", "--model", model, "--texts", texts, "--output", output, "--target-agreement", 1]
    report_file = tmp_path / "report.json"
    code, _, err = run(*wanted, "--scheme", plain, "--json", report_file)
    assert code == 5
    assert "not written: 100.00% of 30 answers should be those of fp32; they are with plain" in err
    assert "The layers that hurt most: layers.1.ffn_out (" in err
    assert not output.exists()
    report = json.loads(report_file.read_text())
    assert report["written"] is None
    assert not report["passed"]

    code, out, err = run(*wanted, "--scheme", plain, "--write-anyway")
    assert code == 0, err
    assert "plain, written although it misses the target of 100.00%" in out
    assert Checkpoint.open(output).scheme.name == "plain"  # type: ignore[union-attr]


def test_smoothing_saves_what_one_scale_ruins(run, texts: Path, classifier: Path, tmp_path: Path) -> None:
    model = ruined(classifier, tmp_path / "ruined", texts)
    wanted = ["quantize", "--model", model, "--texts", texts, "--output", tmp_path / "int8", "--target-agreement", 0.9]
    for scheme, expected in (("dynamic", 5), ("static", 0)):  # each token has one scale as well
        code, _, err = run(*wanted, "--scheme", scheme)
        assert code == expected, err


def test_layers_stay_in_float_where_nothing_else_helps(
    run, texts: Path, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from q8core.training import gate

    shares = iter([0.6, 0.5, 0.7, 1.0])

    def agreement(*_: object) -> gate.Agreement:
        return gate.Agreement(30, round(30 * next(shares)), 0.1, 0.2)

    monkeypatch.setattr(gate._Gate, "agreement", agreement)
    output = tmp_path / "int8"
    code, out, err = run("quantize", "--model", classifier, "--texts", texts, "--output", output, "--int8-only")
    assert code == 0, err
    assert f"{output}: static-2-float, passed 98.00%" in out
    checkpoint = Checkpoint.open(output)
    named = out.split("each alone: ")[1].split(", ")[:2]
    worst = [one.split(" ")[0] for one in named]
    assert [path for path, site in checkpoint.plan.sites.items() if path in worst and site.weight is None] == sorted(
        worst, key=list(checkpoint.plan.sites).index
    )
    engine = load_engine(checkpoint, "int8", "onednn")
    assert bool(torch.isfinite(torch.from_numpy(engine.infer(TokenBatch.pack([([2, 5, 3], [0] * 3)])))).all())


def test_questions_are_compared_by_their_spans(run, tiny_qa: Path, tmp_path: Path) -> None:
    file = tmp_path / "questions.csv"
    rows = [f'"{WORDS[i % 8]} film","a {WORDS[i % 7]} film , {WORDS[i % 5]} and {WORDS[i % 3]} ."' for i in range(40)]
    file.write_text("question,context\n" + "\n".join(rows) + "\n")
    output = tmp_path / "int8"
    code, out, err = run("quantize", "--model", tiny_qa, "--texts", file, "--output", output, "--target-agreement", 0.1)
    assert code == 0, err
    assert "of 20 answers are those of fp32" in out
    assert open_source(output).head == "qa"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--texts", "t.txt", "--task", "sst2"], "--task sst2 does not go with --texts, which needs no labels"),
        (["--texts", "t.txt", "--seed", 3], "--seed 3 does not go with --texts"),
        (["--task", "sst2", "--target-agreement", 0.9], "--target-agreement is for --texts"),
        (["--task", "sst2", "--write-anyway"], "--write-anyway is for --texts"),
        (["--task", "sst2", "--json", "r.json"], "--json is for --texts"),
        ([], "give --texts FILE for texts without labels, or --task with its labelled data"),
        (
            ["--texts", "t.txt", "--scheme", "q8bert"],
            "--scheme is 'q8bert'; allowed: static, static-attention, dynamic",
        ),
        (["--texts", "t.txt", "--scheme", "dynamic", "--calibration-examples", 9], "-examples 9 is for calibration"),
        (["--texts", "missing.txt"], "missing.txt"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    run, classifier: Path, tmp_path: Path, options: list[object], message: str
) -> None:
    code, _, err = run("quantize", "--model", classifier, "--output", tmp_path / "int8", *options)
    assert code == 2
    assert message in err
