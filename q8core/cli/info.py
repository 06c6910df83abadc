"""``q8bert info``: what a checkpoint says of itself, after it passed every check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from q8core.cli.options import JsonFile


def info(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    json_file: JsonFile = None,
) -> None:
    """Verify a checkpoint and print its card."""
    from q8core.checkpoint import Checkpoint

    opened = Checkpoint.open(checkpoint)
    manifest = opened.manifest
    card = {
        "name": opened.name,
        "task": opened.task,
        "labels": list(opened.labels),
        "max_length": opened.max_length,
        "kind": "int8" if manifest else "float",
        "scheme": manifest.scheme.get("name") if manifest else None,
        "files": {name: entry["bytes"] for name, entry in manifest.files.items()} if manifest else {},
        "scores": manifest.scores if manifest else {},
        "training": manifest.training if manifest else {},
        "golden_inputs": len(opened.golden),
    }
    text = json.dumps(card, indent=2, ensure_ascii=False)
    typer.echo(text)
    if json_file:
        json_file.write_text(text + "\n")
