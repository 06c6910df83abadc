"""``q8bert info``: the card of a checkpoint that passed every check, and how it runs on this machine."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from q8core.cli.options import JsonFile

if TYPE_CHECKING:
    from q8core.checkpoint import Checkpoint


def info(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    kernel: Annotated[str, typer.Option(help="int8 kernel: native, onednn, fbgemm, or auto to choose.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads. [default: as many as serve would use]")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Verify a checkpoint, load it, and print its card and how it runs here: kernel, times, memory."""
    from q8core.checkpoint import Checkpoint

    opened = Checkpoint.open(checkpoint)
    opened.tokenizer()
    manifest = opened.manifest
    card = {
        "name": opened.name,
        "task": opened.task,
        "labels": list(opened.labels),
        "problem_type": opened.problem_type,
        "max_length": opened.max_length,
        "kind": "int8" if manifest else "float",
        "family": opened.config.family.model_type,
        "scheme": opened.scheme.name if opened.scheme else None,
        "bits": str(opened.bits),
        "files": {name: entry["bytes"] for name, entry in manifest.files.items()} if manifest else {},
        "scores": manifest.scores if manifest else {},
        "training": manifest.training if manifest else {},
        "golden_inputs": len(opened.golden),
        "here": _here(opened, kernel, threads),
    }
    text = json.dumps(card, indent=2, ensure_ascii=False)
    typer.echo(text)
    if json_file:
        json_file.write_text(text + "\n")


def _here(opened: Checkpoint, kernel: str, threads: int | None) -> dict[str, object]:
    """Load the checkpoint's own backend and return facts about it on this machine, or why it does not run."""
    from q8core.cpus import available_cpus
    from q8core.engines import load_engine
    from q8core.errors import EngineError

    begin = time.perf_counter()
    backend = "int8" if opened.manifest else "fp32"
    try:
        engine = load_engine(opened, backend, kernel if backend == "int8" else "auto", threads or available_cpus())
    except EngineError as error:
        return {"backend": backend, "error": str(error)}
    seconds, memory = time.perf_counter() - begin, engine.memory()
    return {
        **engine.describe(),
        "memory_bytes": {"weights": memory.weights, "scales": memory.scales},
        "load_seconds": round(seconds, 3),
    }
