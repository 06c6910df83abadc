"""`q8bert compare`: the numbers of the live comparison, from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from q8core.cli import app as command_line
from q8core.errors import CheckpointError, InputError
from service import __main__ as _  # noqa: F401  # registers serve and compare
from service.http.app import create_app
from service.lifecycle import State
from service.models.registry import ModelRegistry
from service.second_opinion.cascade import Cascade
from service.second_opinion.replay import Compared, read_requests
from service.settings import Settings
from tests.models import small
from tests.service.conftest import open_registry
from tests.service.http.test_metrics_route import samples
from tests.service.running import wait_until
from tests.service.second_opinion.test_shadow_service import serve
from tests.service.tiny_checkpoints import make_checkpoint

WORDS = ["ada", "wrote", "the", "very", "good", "book", "in", "paris", "it", "was", "not", "bad"]
ORDERS = [" ".join(WORDS[n:] + WORDS[:n]) for n in range(len(WORDS))]
BODIES: list[dict[str, Any]] = [
    *({"inputs": text} for text in ORDERS),
    # the tiny classifier's backends differ on these
    *({"inputs": text} for text in ("! where good 2 b wrote", "7 k 8 a it e")),
    {"inputs": ["good", ["not bad", "very"], {"text": "ada"}, ""], "parameters": {"top_k": 1}},
    {"inputs": {"text": "ada wrote", "text_pair": "the book"}, "backend": "fp32"},
    *({"question": "who wrote it?", "context": text, "backend": "int8"} for text in ORDERS),
    {"inputs": [{"question": "who?", "context": f"{text}. " * 9} for text in ORDERS[:2]], "parameters": {"top_k": 3}},
    {"inputs": {"question": "where?", "context": "😀 ada é"}, "parameters": {"handle_impossible_answer": True}},
    {"question": "who?", "context": "ada " * 60, "parameters": {"max_seq_len": 32, "doc_stride": 8}},
]


def write_lines(file: Path, bodies: list[Any]) -> Path:
    file.write_text("\n".join(json.dumps(body) for body in bodies) + "\n\n")
    return file


def both_backends(*folders: Path) -> dict[str, Compared]:
    return {task: Compared.backends_of(model) for task, model in open_registry(*folders).defaults.items()}


def run(*arguments: object) -> str:
    options = ["--kernel", "fbgemm", "--threads", "1"]
    result = CliRunner().invoke(command_line, ["compare", *map(str, arguments), *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_offline_gives_the_numbers_of_the_service(classify_folder: Path, qa_folder: Path, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "requests.jsonl", BODIES)
    folders = ("--checkpoint", classify_folder, "--checkpoint", qa_folder)
    run("--file", file, *folders, "--worst", 20, "--json", tmp_path / "out.json")
    offline = json.loads((tmp_path / "out.json").read_text())
    assert offline["requests"] == len(BODIES)
    inputs = {"classify": 12 + 2 + 4 + 1, "qa": 12 + 2 + 1 + 1}
    with serve(classify_folder, qa_folder) as running:
        for number, body in enumerate(BODIES, start=1):
            asks = "question" in json.dumps(body)
            answer = running.client.post(
                "/qa" if asks else "/classify", json=body, headers={"x-request-id": f"line{number}"}
            )
            assert answer.status_code == 200
        counts = lambda: {m.pop("task"): m for m in running.client.get("/agreement").json()["models"].values()}  # noqa: E731
        wait_until(lambda: {task: found["compared"] for task, found in counts().items()} == inputs)
        live, metrics = counts(), samples(running.client)
    for task, found in live.items():
        del found["since"], found["revision"]
        for case in found["worst"]:
            case["request_id"] = case["request_id"].replace("line", "line ")
        recorded = {
            key: value for key, value in offline["tasks"][task].items() if key not in ("checkpoint", "truncated")
        }
        assert recorded == found
        model = ("model", f"tiny-{task}")
        disagreed = metrics["q8bert_shadow_comparisons_total", (model, ("result", "disagree"), ("task", task))]
        assert recorded["compared"] - recorded["agreed"] == disagreed > 0, "the inputs make the backends differ"
        for name in ("abs_diff", "span_f1"):
            if name in recorded:
                total = metrics[f"q8bert_shadow_{name}_sum", (model, ("task", task))]
                assert recorded[name]["mean"] == pytest.approx(total / inputs[task], rel=1e-12)


def test_what_it_prints(classify_folder: Path, qa_folder: Path, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "requests.jsonl", BODIES)
    folders = ("--checkpoint", classify_folder, "--checkpoint", qa_folder)
    plain = run("--file", file, *folders, "--worst", 2)
    assert "int8 agrees with fp32 on" in plain
    assert plain.count("line ") == 4
    assert "ada" not in plain.replace("ada-", ""), "no text unless asked for"
    assert "ada" in run("--file", file, *folders, "--texts")


def test_a_threshold_for_serve(classify_folder: Path, qa_folder: Path, tmp_path: Path) -> None:
    file, cascade = write_lines(tmp_path / "requests.jsonl", BODIES), tmp_path / "cascade.json"
    folders = ("--checkpoint", classify_folder, "--checkpoint", qa_folder)
    out = run("--file", file, *folders, "--target-agreement", 1, "--cascade", cascade, "--json", tmp_path / "out.json")
    assert "q8bert serve --cascade" in out
    assert "too few" in out
    found = Cascade.read(cascade, open_registry(classify_folder, qa_folder)).calibrations
    assert {one.task for one in found} == {"classify", "qa"}
    assert all(one.agreement == 1 and 0 < one.threshold < 1 and one.escalated > 0 for one in found)
    offline = json.loads((tmp_path / "out.json").read_text())
    assert [one["threshold"] for one in offline["cascade"]] == [one.threshold for one in found]
    # served with it, auto answers as fp32 does on the same inputs
    with serve(classify_folder, qa_folder, shadow_rate=0, cascade=cascade) as running:
        for body in BODIES[:14]:
            auto, fp32 = (
                running.client.post("/classify", json={**body, "backend": b}).json() for b in ("auto", "fp32")
            )
            assert auto[0][0]["label"] == fp32[0][0]["label"]
        for text in ORDERS:
            body = {"question": "who wrote it?", "context": text}
            auto, fp32 = (running.client.post("/qa", json={**body, "backend": b}).json() for b in ("auto", "fp32"))
            assert (auto["start"], auto["end"]) == (fp32["start"], fp32["end"])


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of few bits, called as the other one."""
    return make_checkpoint(tmp_path_factory.mktemp("few") / "few", "classify", seed=4, scheme=small("qbert-2"))


def test_another_model_and_a_threshold_for_it(few: Path, classify_folder: Path, tmp_path: Path) -> None:
    file, cascade, out = write_lines(tmp_path / "r.jsonl", BODIES[:16]), tmp_path / "c.json", tmp_path / "out.json"
    against = f"{classify_folder}@int8"
    options = ("--target-agreement", 0.9, "--cascade", cascade, "--worst", 30, "--json", out)
    said = run("--file", file, "--checkpoint", few, "--against", against, *options)
    assert f"int8 agrees with {against} on" in said
    assert "tiny-classify@int8 answers" in said
    assert said.strip().endswith(f"q8bert serve --cascade {cascade}, and serve both models")
    found = json.loads(out.read_text())["tasks"]["classify"]
    assert found["against"] == against
    first, second = (both_backends(folder)["classify"].tested.model for folder in (few, classify_folder))
    named = [("few", few), ("full", classify_folder)]
    registry = ModelRegistry.open([], ["int8"], "fbgemm", 1, named=named)
    read = Cascade.read(cascade, registry)
    (one,) = read.calibrations
    assert (one.revision, one.second, one.second_revision) == (first.revision, "tiny-classify@int8", second.revision)
    assert 0 < one.threshold < 1
    assert (one.agreement >= 0.9, one.int8_agreement) == (True, found["agreement"])
    assert read.second(registry.models["few"]).name == "full@int8"
    # the numbers are those of /compare, request by request
    app = create_app(Settings(threads=1, backends=("int8",), cascade=cascade), registry)
    with TestClient(app) as client:
        assert app.state.service.lifecycle.wait_until_settled(240) is State.READY
        for case in found["worst"]:
            body = BODIES[int(case["request_id"].removeprefix("line ")) - 1]["inputs"]
            if isinstance(body, str):
                alone = client.post("/compare", json={"inputs": body, "variants": ["few@int8", "full@int8"]}).json()
                shown = {name: share["answer"][0] for name, share in alone["results"].items()}
                assert case["answers"] == {against: shown["full@int8"], "tiny-classify@int8": shown["few@int8"]}
                assert (case["agree"], case["abs_diff"]) == (alone["agree"], alone["delta"]["max_abs_prob"])
    assert {case["agree"] for case in found["worst"]} == {True, False}


def test_fp32_of_the_same_weights_is_what_answers_again_by_default(classify_folder: Path, tmp_path: Path) -> None:
    file, files = write_lines(tmp_path / "r.jsonl", BODIES[:16]), [tmp_path / "a.json", tmp_path / "b.json"]
    common = ("--file", file, "--checkpoint", classify_folder, "--target-agreement", 1, "--cascade")
    run(*common, files[0])
    run(*common, files[1], "--against", f"{classify_folder}@fp32")
    (default,), (named,) = ([*json.loads(file.read_text())["calibrations"]] for file in files)
    assert (default["second"], named["second"]) == (None, "tiny-classify@fp32")
    assert default == {**named, "second": None, "second_revision": None}


def test_what_it_cannot_be_compared_with(
    few: Path, classify_folder: Path, qa_folder: Path, number_folder: Path, tmp_path: Path
) -> None:
    file = write_lines(tmp_path / "r.jsonl", BODIES[:1])
    cases = [
        ((f"{classify_folder}",), "expected PATH@BACKEND, such as"),
        ((f"{classify_folder}@auto",), "expected PATH@BACKEND, such as"),
        ((f"{qa_folder}@fp32",), "is for qa; the checkpoints are for classify"),
        ((f"{classify_folder}@fp32", f"{classify_folder}@int8"), "two --against are for classify"),
        ((f"{few}@int8",), "has the weights that it would be compared with"),
        ((f"{number_folder}@fp32",), "same labels"),
    ]
    for against, words in cases:
        with pytest.raises(InputError, match=words):
            run("--file", file, "--checkpoint", few, *(part for one in against for part in ("--against", one)))
    with pytest.raises(CheckpointError):
        run("--file", file, "--checkpoint", few, "--against", f"{tmp_path}/none@fp32")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: not valid JSON"),
        ("[1]", "line 2: "),
        ('{"inputs": []}', "empty list"),
        ('{"inputs": 5}', "line 2: inputs"),
        ('{"inputs": "secret", "parameters": {"topk": 1}}', "line 2: parameters: unknown field 'topk'"),
        ('{"question": "who?"}', "line 2: "),
        ('{"question": "who?", "context": "secret", "parameters": {"max_seq_len": 5000}}', "5000"),
        ('{"question": "secret", "context": " "}', "the context is empty"),
        ('{"inputs": "' + "secret " * 100 + '", "parameters": {"truncation": false}}', "tokens"),
    ],
)
def test_a_wrong_line_is_named_and_not_repeated(
    classify_folder: Path, qa_folder: Path, tmp_path: Path, line: str, words: str
) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text('{"inputs": "good"}\n' + line + "\n")
    with pytest.raises(InputError, match=r"requests\.jsonl, line 2") as error:
        read_requests(file, both_backends(classify_folder, qa_folder))
    assert words in str(error.value)
    assert "secret" not in str(error.value)


def test_what_cannot_be_compared(classify_folder: Path, tmp_path: Path) -> None:
    models = both_backends(classify_folder)
    for text, words in (("", "holds no request"), ('{"question": "a", "context": "b"}', "a request for qa")):
        (tmp_path / "r.jsonl").write_text(text)
        with pytest.raises(InputError, match=words):
            read_requests(tmp_path / "r.jsonl", models)
    with pytest.raises(InputError, match="cannot be read"):
        read_requests(tmp_path / "none.jsonl", models)
    with pytest.raises(InputError, match="--target-agreement"):
        run("--file", tmp_path / "r.jsonl", "--cascade", tmp_path / "c.json")
