"""``q8bert import``: converts a model from the hub into a folder that every command reads."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from q8core.cli.options import JsonFile

if TYPE_CHECKING:
    from q8core.importing.run import Imported


def import_(
    source: Annotated[str, typer.Argument(metavar="HUB_ID_OR_FOLDER", help="A model as it lies on the hub.")],
    output: Annotated[Path, typer.Option(help="Folder to write; it must not exist yet, or be empty.")],
    json_file: JsonFile = None,
) -> None:
    """Convert a model folder with pickles, shards, old names or no tokenizer.json into one that every command reads.

    Weights become one model.safetensors in float32; pickles are read without running their code, in a process without
    a network if the system allows that. transformers makes a missing tokenizer.json. At the end 20 texts are computed
    with transformers and with the fp32 engine: if the numbers differ by more than 1e-4, nothing is written.
    """
    from q8core.importing.run import import_model

    imported = import_model(source, output)
    for line in _lines(imported):
        typer.echo(line)
    if json_file:
        report = {"source": source, **asdict(imported), "folder": str(imported.folder)}
        json_file.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


def _lines(imported: Imported) -> list[str]:
    """Return what the user should know about the result."""
    proof = imported.proof
    left = imported.left_out
    shown = ", ".join(left[:5]) + (f", ... ({len(left)} in all)" if len(left) > 5 else "")
    converted = [dtype for dtype in imported.dtypes if dtype != "F32"]
    ready = "ready for quantize, evaluate, serve and train" if imported.head else "without a head: ready for train"
    return [
        f"weights: {imported.weights}" + (f", {', '.join(converted)} written as float32" if converted else ""),
        *([f"left out, because {imported.architecture} has no such tensors: {shown}"] if left else []),
        f"tokenizer: {imported.tokenizer}",
        f"compared: {proof.inputs} inputs, {proof.numbers}; transformers (from {proof.reference}) and the fp32 engine "
        f"differ by at most {proof.largest_difference:.2g} (absolute)",
        f"{imported.folder}: {imported.architecture}, {ready}",
    ]
