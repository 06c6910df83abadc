"""What a command does not import: seconds of waiting, and memory of a service that never trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import service
from q8core.native.library import variants
from tests.service.tiny_checkpoints import make_checkpoint

BUNDLED = Path(service.__file__).parent / "checkpoints"
COMMANDS = (
    "import", "train", "quantize", "sensitivity", "evaluate", "reproduce", "bench", "info", "serve", "compare",
    "loadtest", "export", "hash-key",
)  # fmt: skip
# Prints the modules that are there when q8bert has run with the arguments, one command line after the other.
PROGRAM = """
import json, sys
from service.__main__ import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["q8bert", *arguments]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
{then}
print("\\n" + json.dumps(sorted(sys.modules)))
"""


def modules_after(*command_lines: Sequence[str], then: str = "") -> set[str]:
    """Run q8bert and then a piece of code in a fresh interpreter; return the names of all modules it has imported."""
    program = [sys.executable, "-c", PROGRAM.format(then=then), json.dumps(command_lines)]
    end = subprocess.run(program, capture_output=True, text=True, check=False)
    assert end.returncode == 0, end.stderr
    return set(json.loads(end.stdout.splitlines()[-1]))


def found(modules: set[str], *packages: str) -> set[str]:
    """Which of these packages, or modules of them, are among the modules."""
    return {name for name in modules for package in packages if name == package or name.startswith(f"{package}.")}


# Asks the whole application in this process, then prints the modules that are there.
ASK = """
import json, sys
from fastapi.testclient import TestClient
from service.http.app import create_app
from service.lifecycle import State
from service.models.registry import ModelRegistry
from service.settings import load_settings
settings = load_settings({})
with TestClient(create_app(settings, ModelRegistry.from_settings(settings))) as client:
    service = client.app.state.service
    assert service.lifecycle.wait_until_settled(240) is State.READY, service.lifecycle.failure
    about = client.get("/info").json()["models"].values()
    kernels = {(backend, found["kernel"]) for model in about for backend, found in model["backends"].items()}
    assert kernels == {("int8", "native"), ("fp32", "native")}, kernels
    for backend in ("int8", "fp32"):
        text = {"inputs": "a gripping, beautifully acted film", "backend": backend}
        found = client.post("/classify", json=text)
        assert found.json()[0][0]["label"] == "positive", found.text
        asked = {"question": "Who built it?", "context": "The tower was built by Gustave Eiffel."}
        found = client.post("/qa", json={"inputs": asked, "backend": backend})
        assert "Gustave Eiffel" in found.json()["answer"], found.text
    assert client.post("/compare", json={"inputs": asked}).status_code == 200
print("\\n" + json.dumps(sorted(sys.modules)))
"""


def test_help_waits_for_no_library() -> None:
    modules = modules_after(["--help"], *([command, "--help"] for command in COMMANDS))
    assert found(modules, "q8core.cli.train", "service.cli", "service.second_opinion.command")
    assert not found(modules, "torch", "transformers", "tokenizers", "numpy", "fastapi")


def test_the_service_has_no_training_in_it(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", "classify")
    serve = ["serve", "--checkpoint", str(folder), "--dry-run", "--kernel", "fbgemm", "--threads", "1"]
    modules = modules_after(serve, then="import service.http.app, service.hosts.single")
    assert found(modules, "torch", "service.http.app", "q8core.engines.loaders.int8")
    assert not found(modules, "q8core.training", "q8core.bench", "q8core.evaluate", "sklearn", "pandas", "scipy")
    assert not found(modules, "torch._dynamo", "torch._inductor")
    assert not found(modules, "transformers.modeling_utils", "transformers.models.bert.modeling_bert")


needs_vectors = pytest.mark.skipif(
    next(iter(variants())) == "portable", reason="this CPU runs no vector variant of the native kernel"
)


@needs_vectors
@pytest.mark.parametrize("name", ["sst2-minilm-l6", "squad-minilm-l6"])
def test_a_checkpoint_is_shown_without_torch(name: str) -> None:
    modules = modules_after(["info", str(BUNDLED / name)])
    assert found(modules, "q8core.engines.loaders.native", "numpy")
    assert not found(modules, "torch", "transformers", "sklearn", "pandas", "scipy")


@needs_vectors
def test_requests_are_compared_without_torch(tmp_path: Path) -> None:
    (tmp_path / "requests.jsonl").write_text('{"inputs": "a gripping film"}\n')
    modules = modules_after(["compare", "--file", str(tmp_path / "requests.jsonl")])
    assert found(modules, "service.second_opinion.replay", "numpy")
    assert not found(modules, "torch", "transformers", "sklearn", "pandas", "scipy")


@needs_vectors
def test_the_service_answers_requests_without_torch() -> None:
    """Both tasks on both backends, through the whole application, with the settings that it starts with."""
    environment = {**os.environ, "Q8BERT_THREADS": "1"}
    program = [sys.executable, "-W", "error", "-c", ASK]
    end = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert end.returncode == 0, end.stderr
    modules = set(json.loads(end.stdout.splitlines()[-1]))
    assert found(modules, "service.http.app", "q8core.engines.loaders.native_float")
    assert not found(modules, "torch", "transformers", "sklearn", "pandas", "scipy", "numpy.random")


@pytest.mark.parametrize(
    "name", ["q8core.quant.plan", "q8core.quant.schemes", "q8core.checkpoint", "q8core.engines", "q8core.tasks.task"]
)
def test_descriptions_and_engines_import_no_torch(name: str) -> None:
    program = [sys.executable, "-c", f"import json, sys, {name}; print(json.dumps(sorted(sys.modules)))"]
    end = subprocess.run(program, capture_output=True, text=True, check=True)
    assert not found(set(json.loads(end.stdout)), "torch", "transformers")


def test_what_loads_the_engines_imports_no_http_framework() -> None:
    """It is imported while they load."""
    program = [sys.executable, "-c", "import json, sys, service.hosts.start; print(json.dumps(sorted(sys.modules)))"]
    end = subprocess.run(program, capture_output=True, text=True, check=True)
    assert not found(set(json.loads(end.stdout)), "fastapi", "starlette", "uvicorn", "torch")
