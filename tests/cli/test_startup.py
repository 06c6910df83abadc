"""What a command does not import: seconds of waiting, and memory of a service that never trains."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.service.tiny_checkpoints import make_checkpoint

COMMANDS = (
    "import", "train", "quantize", "evaluate", "reproduce", "bench", "info", "serve", "compare", "loadtest", "export",
    "hash-key",
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
