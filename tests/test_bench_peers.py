"""The peers compute the same model as transformers does, on padded batches; tests skip where packages are missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel
from typer.testing import CliRunner

from q8core.bench import contenders, models
from q8core.bench.choice import choose_contenders
from q8core.bench.contender import CONTENDERS
from q8core.bench.padding import pad
from q8core.bench.peers import registry
from q8core.bench.peers.registry import PEER_NAMES, check_packages, load_peer, prepare_peer
from q8core.bench.stock import stock_class, stock_inputs
from q8core.bench.workloads import random_batch
from q8core.cli import app
from q8core.errors import EngineError, InputError

TINY: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
BATCH = random_batch((3, 9, 5), 100)
LEAST_CORRELATION = 0.97
"""Of int8 results with float ones: 8 bits leave about three digits, and a missing mask or layer leaves far less."""

LEAST_CORRELATION_INT4 = 0.8


@pytest.fixture(scope="module", params=["qa", "classify"])
def task(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(task: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float model whose weights are large enough that every part of it shows in the logits."""
    path = tmp_path_factory.mktemp(task)
    torch.manual_seed(0)
    stock_class(task).from_config(BertConfig(**TINY, initializer_range=0.2)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def expected(task: str, folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        return logits(stock_class(task).from_pretrained(folder).eval()(**stock_inputs(BATCH)).to_tuple(), task)


def logits(outputs: Any, task: str) -> torch.Tensor:
    """Return (B, labels), or (T, 2) of real tokens."""
    tensors = [torch.as_tensor(np.asarray(each)) for each in outputs]
    if task == "classify":
        return tensors[0]
    return torch.stack(tensors, -1)[torch.from_numpy(pad(BATCH).attention_mask == 1)]


def run_peer(name: str, folder: Path, task: str) -> Any:
    try:
        check_packages([name])
    except InputError as error:
        pytest.skip(str(error))
    prepare_peer(name, folder, task)
    return load_peer(name, folder, task, 1).bind(BATCH)()


@pytest.mark.parametrize("name", ["onnxruntime-fp32", "openvino-fp32"])
def test_float_peers_give_the_logits_of_transformers(
    name: str, folder: Path, task: str, expected: torch.Tensor
) -> None:
    out = run_peer(name, folder, task)
    found = logits(out.values() if hasattr(out, "values") else out, task)
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["onnxruntime-int8", "openvino-int8", "openvino-int4", "torch-int8-dynamic"])
def test_quantized_peers_give_about_the_logits_of_transformers(
    name: str, folder: Path, task: str, expected: torch.Tensor
) -> None:
    out = run_peer(name, folder, task)
    outputs = out.to_tuple() if hasattr(out, "to_tuple") else out.values() if hasattr(out, "values") else out
    least = LEAST_CORRELATION_INT4 if "int4" in name else LEAST_CORRELATION
    assert correlation(logits(outputs, task), expected) > least


def test_ctranslate_gives_about_the_hidden_states_of_transformers(folder: Path, task: str) -> None:
    if task != "qa":
        pytest.skip("it has no head: the task changes nothing")
    out = run_peer("ctranslate2-int8", folder, task)
    with torch.inference_mode():
        hidden = BertModel.from_pretrained(folder).eval()(**stock_inputs(BATCH)).last_hidden_state
    mask = torch.from_numpy(pad(BATCH).attention_mask == 1)
    assert correlation(torch.as_tensor(np.array(out.last_hidden_state))[mask], hidden[mask]) > LEAST_CORRELATION


def correlation(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1])


def test_names_are_chosen_in_a_fixed_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: name)
    assert choose_contenders((), peers=False) == CONTENDERS
    assert choose_contenders(("openvino-int8", "int8-native"), peers=False) == ("int8-native", "openvino-int8")
    assert choose_contenders(("w4-native", "int8-native"), peers=False) == ("int8-native", "w4-native")
    assert choose_contenders(("int8-native",), peers=True) == ("int8-native", *PEER_NAMES)
    assert choose_contenders((), peers=True) == (*CONTENDERS, *PEER_NAMES)


def test_without_the_native_library_only_who_asks_for_it_gets_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_built() -> None:
        raise EngineError("the native kernel was not built")

    monkeypatch.setattr(contenders, "load_library", not_built)
    assert contenders.missing_engines() == {"int8-native": "the native kernel was not built"}
    assert choose_contenders((), peers=False) == tuple(name for name in CONTENDERS if name != "int8-native")
    assert choose_contenders(("int8-native",), peers=False) == ("int8-native",)


def test_missing_packages_are_named_with_the_way_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None if name in ("nncf", "openvino") else name)
    with pytest.raises(InputError, match=r"the peers need nncf, openvino: pip install 'q8bert\[peers\]'"):
        choose_contenders((), peers=True)
    assert choose_contenders(("onnxruntime-int8",), peers=False) == ("onnxruntime-int8",)


def test_what_goes_wrong_in_the_other_process_is_told(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"preparing onnxruntime-fp32 failed: ValueError"):
        prepare_peer("onnxruntime-fp32", tmp_path, "qa")


@pytest.mark.parametrize("name", [name for name in PEER_NAMES if not name.startswith("torch")])
def test_loading_a_peer_imports_no_torch(name: str) -> None:
    """Its process is measured with what it needs, and no more."""
    peer = registry._PEERS[name]
    code = f"import sys, q8core.bench.first_answer_process, q8core.bench.peers.{peer.module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert f"q8core.bench.peers.{peer.module}" in imported
    assert not imported & {"torch", "transformers", "tokenizers", "q8core.engines"}


@pytest.fixture
def tiny_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models._SIZES, "bert-base", TINY)


def run(*arguments: str) -> dict[str, Any]:
    file = Path(arguments[-1])
    result = CliRunner().invoke(app, ["bench", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.exception
    return json.loads(file.read_text())


@pytest.mark.usefixtures("tiny_shape")
def test_a_run_compares_with_the_fastest_peer(tmp_path: Path) -> None:
    """With the peer that needs no package of its own."""
    arguments = ("--engine", "int8-native", "--engine", "torch-int8-dynamic", "--shape", "2x8", "--repeats", "2")
    report = run(*arguments, "--json", str(tmp_path / "bench.json"))
    assert [t["engine"] for t in report["timings"]] == [
        "int8-native",
        "torch-int8-dynamic",
        "floor-int8-onednn",
        "floor-int8-native",
    ]
    assert report["timings"][0]["ratios"]["fastest_int8_peer"]["contender"] == "torch-int8-dynamic"
    assert report["timings"][1]["ratios"]["fastest_int8_peer"]["times_faster"] == 1
    assert {load["engine"] for load in report["load_seconds"]} == set(report["peers"]) | {"int8-native"}


def test_peers_have_no_checkpoint() -> None:
    result = CliRunner().invoke(app, ["bench", "--memory", "--checkpoint", "x", "--engine", "torch-int8-dynamic"])
    assert "are measured on random weights" in str(result.exception)
