"""The peers by name: required packages, preparing and loading."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8core.bench.contender import Contender
from q8core.errors import EngineError, InputError

if TYPE_CHECKING:
    from q8core.model.head import TaskKind


@dataclass(frozen=True)
class Peer:
    """A runtime to compare with.

    Attributes:
        module: its file in this package; it has `load` and, if files have to be made, `prepare`, each with the suffix.
        suffix: the suffix of these functions' names.
        runtime: the package that runs it.
        tools: the packages that prepare it.
        about: a short description, for progress and reports.
    """

    module: str
    suffix: str
    runtime: str
    tools: tuple[str, ...]
    about: str

    def function(self, name: str) -> Callable[..., Any] | None:
        """Return the peer's `prepare` or `load`, None if it has none."""
        return getattr(import_module(f"q8core.bench.peers.{self.module}"), name + self.suffix, None)


_ONNX = ("onnx", "onnxscript")
_PEERS = {
    "onnxruntime-fp32": Peer("onnx_runtime", "_fp32", "onnxruntime", _ONNX, "exported to ONNX"),
    "openvino-fp32": Peer("openvino_runtime", "_fp32", "openvino", _ONNX, "exported to ONNX, computing in f32"),
    "torch-int8-dynamic": Peer("torch_dynamic", "", "torch", (), "torch.ao.quantization.quantize_dynamic"),
    "onnxruntime-int8": Peer("onnx_runtime", "_int8", "onnxruntime", _ONNX, "dynamic, per channel"),
    "ctranslate2-int8": Peer("ctranslate", "", "ctranslate2", (), "encoder and pooler only, no head"),
    "openvino-int8": Peer("openvino_runtime", "_int8", "openvino", (*_ONNX, "nncf"), "static, calibrated by NNCF"),
    "openvino-int4": Peer("openvino_runtime", "_int4", "openvino", (*_ONNX, "nncf"), "weights of 4 bits by NNCF"),
}
PEER_NAMES = tuple(_PEERS)


def about(name: str) -> str:
    """Return the description of a peer."""
    return _PEERS[name].about


def peer_versions(names: Sequence[str]) -> dict[str, str]:
    """Return package -> version of the runtimes of the peers among `names`."""
    return {package: version(package) for package in dict.fromkeys(_PEERS[n].runtime for n in names if n in _PEERS)}


def check_packages(names: Sequence[str]) -> None:
    """Refuse peers whose packages are not installed.

    Raises:
        InputError: lists the packages, and how to install them.
    """
    wanted = {package for name in names for package in (_PEERS[name].runtime, *_PEERS[name].tools)}
    missing = sorted(package for package in wanted if find_spec(package) is None)
    if missing:
        raise InputError(f"the peers need {', '.join(missing)}: pip install 'q8bert[peers]'")


def prepare_peer(name: str, folder: Path, task: TaskKind) -> None:
    """Write a peer's files beside the float weights of a folder, in a process of its own.

    Exporters print, log and leave memory behind, which must not disturb the measurement.

    Raises:
        EngineError: if it fails; has the process's last line of output.
    """
    if _PEERS[name].function("prepare") is None:
        return
    request = json.dumps({"name": name, "folder": str(folder), "task": task})
    command = [sys.executable, "-m", "q8core.bench.peers.prepare_process", request]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EngineError(f"preparing {name} failed: {last}")


def prepare_here(name: str, folder: Path, task: TaskKind) -> None:
    """Write a peer's files, in this process."""
    prepare = _PEERS[name].function("prepare")
    assert prepare is not None  # the process is only started for peers that have it
    prepare(folder, task)


def import_runtime(name: str) -> None:
    """Import a peer's package, so that loading a model does not include it."""
    import_module(_PEERS[name].runtime)


def load_peer(name: str, folder: Path, task: TaskKind, threads: int) -> Contender:
    """Load a prepared peer."""
    load = _PEERS[name].function("load")
    assert load is not None
    return load(folder, task, threads)
