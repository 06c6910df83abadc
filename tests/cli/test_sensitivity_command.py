"""``q8bert sensitivity``: the scheme file that it writes, and what it refuses before it measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from q8core.checkpoint import Checkpoint
from q8core.quant import find_scheme
from tests.conftest import save_tiny

ROWS = "text,label\n" + "a good film,positive\nan awful film,negative\na very boring plot,negative\n" * 8


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data.csv").write_text(ROWS)
    return tmp_path / "data.csv"


def arguments(model: Path, data: Path, output: Path, *more: object) -> list[object]:
    few = ["--examples", "12", "--probes", "4", "--subsets", "1"]
    own = ["--task", "classify", "--train-file", data, "--model", model, "--output", output]
    return ["sensitivity", *own, *few, *more]


def test_the_scheme_is_one_to_train_with(run, tiny_classifier: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    scheme, report, picture = tmp_path / "bits.toml", tmp_path / "bits.json", tmp_path / "bits.png"
    more = ["--average-bits", "3.5", "--json", report, "--plot", picture]
    code, out, err = run(*arguments(tiny_classifier, data, scheme, *more))
    assert code == 0, err
    assert f"{scheme}: 3." in out
    found = json.loads(report.read_text())
    assert found["allocation"]["bits"] <= 3.5
    assert found["allocation"]["loss_increase"] <= found["uniform"]["loss_increase"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    bits = {path: one["bits"] for path, one in found["matrices"].items()}
    assert len(bits) == 12
    assert {path: find_scheme(str(scheme)).at(path.split(".")[-1], path).weight.bits for path in bits} == bits
    quantized = tmp_path / "int"
    own = ["--task", "classify", "--train-file", data, "--dev-file", data, "--model", tiny_classifier]
    code, _, err = run("train", *own, "--scheme", scheme, "--max-steps", "1", "--output", quantized)
    assert code == 0, err
    plan = Checkpoint.open(quantized).plan
    assert {path: plan.sites[path].weight.bits for path in bits} == bits


def test_bits_fit_into_a_base_whose_weights_have_another_grid(
    run, tiny_classifier: Path, data: Path, tmp_path: Path
) -> None:
    """Q-BERT's have zero points, which 8 bits cannot have, for groups that do not divide the rows here."""
    scheme, quantized = tmp_path / "bits.toml", tmp_path / "int"
    code, _, err = run(*arguments(tiny_classifier, data, scheme, "--average-bits", "3.5", "--scheme", "qbert-4"))
    assert code == 0, err
    own = ["--task", "classify", "--train-file", data, "--dev-file", data, "--model", tiny_classifier]
    code, _, err = run("train", *own, "--scheme", scheme, "--max-steps", "1", "--output", quantized)
    assert code == 0, err
    sites = Checkpoint.open(quantized).plan.sites.values()
    weights = [site.weight for site in sites if site.site.kind == "linear" and site.path.startswith("layers.")]
    found = {(weight.rule, weight.grid, weight.granularity) for weight in weights if weight is not None}
    assert found == {("mse", "symmetric", "channel")}


def test_the_control_measures_nothing_again(run, tiny_classifier: Path, data: Path, tmp_path: Path) -> None:
    texts: list[str] = []
    for name, more in (("bits", ()), ("reverse", ("--reverse",)), ("rank", ("--allocation", "rank"))):
        output = tmp_path / f"{name}.toml"
        code, _, err = run(*arguments(tiny_classifier, data, output, "--average-bits", "3", *more))
        assert code == 0, err
        texts.append(output.read_text().partition("\n")[2])
        state = (tmp_path / "sensitivity_state.json").read_text()
        assert state == (first := locals().get("first", state))
    assert len(set(texts)) == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--average-bits", "1.5"), "--average-bits is 1.5; allowed: 2 to 8"),
        (("--allocation", "rank", "--average-bits", "2.4"), "--average-bits is 2.4; allowed: 2.5 to 8"),
        (("--allocation", "rank", "--subsets", "0"), "--subsets is 0, but --allocation rank"),
        (("--allocation", "best"), "--allocation is 'best'; allowed: budget, rank"),
        (("--scheme", "q9bert"), "--scheme is 'q9bert'; allowed are the presets of given bits: q8bert,"),
        (("--loss", "none"), "--loss is 'none'; allowed: answers, labels"),
        (("--output", "bits.json"), "the scheme is TOML"),
        (("--output", "q8bert.toml"), "q8bert is the name of a preset"),
        (("--label-column", "stars"), "stars"),
        (("--data", "."), "--data . does not go with --task classify"),
    ],
)
def test_what_cannot_be_is_refused(
    run, tiny_classifier: Path, data: Path, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    code, _, err = run(*arguments(tiny_classifier, data, tmp_path / "bits.toml", *more))
    assert code == 2
    assert message in err
    assert not (tmp_path / "bits.toml").exists()


def test_models_and_data_that_do_not_fit_are_refused(
    run, tiny_classifier: Path, tiny_qa: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "bits.toml"
    code, _, err = run(*arguments(tiny_qa, data, output))
    assert (code, "was not fine-tuned for this task" in err) == (3, True)
    code, _, err = run(*arguments(save_tiny(tmp_path / "other", "classify", labels=("ham", "spam")), data, output))
    assert (code, "the model answers ham, spam" in err) == (2, True)
    own = ["--task", "classify", "--model", tiny_classifier, "--output", output]
    code, _, err = run("sensitivity", *own)
    assert (code, "--task classify needs --train-file" in err) == (2, True)
