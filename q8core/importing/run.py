"""The whole import: fetch, refuse, convert, check, prove, and only then move the folder to its final path."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from transformers import CONFIG_MAPPING

from q8core.arrays import Array
from q8core.checkpoint.config import CONFIG_FILE
from q8core.checkpoint.float_names import read_names
from q8core.checkpoint.float_source import FloatSource, open_source
from q8core.checkpoint.manifest import FLOAT_FILE
from q8core.checkpoint.tensors import write_tensors
from q8core.documents import read_json
from q8core.errors import CheckpointError, InputError, Q8Error
from q8core.importing.hub import fetch
from q8core.importing.proof import Proof, prove
from q8core.importing.reference import encoder_class
from q8core.importing.refusals import check_supported
from q8core.importing.tokenizer_files import write_tokenizer
from q8core.importing.weights import Weights, find_weights


@dataclass(frozen=True)
class Imported:
    """The result of an import.

    Attributes:
        folder: the written folder.
        weights: the original's file of weights, or their index.
        pickled: whether that was a pickle.
        architecture: transformers' class of the written model.
        head: the task of its head; None for an encoder alone.
        dtypes: safetensors' names of the original dtypes; all tensors are float32 now.
        left_out: tensors of the original that the written model does not have.
        tokenizer: how the tokenizer was made.
        proof: what was compared, and the largest difference.
    """

    folder: Path
    weights: str
    pickled: bool
    architecture: str
    head: str | None
    dtypes: tuple[str, ...]
    left_out: tuple[str, ...]
    tokenizer: str
    proof: Proof


def import_model(source: str, output: Path) -> Imported:
    """Convert a model from the hub into a folder that every command reads; write nothing unless it is proven.

    Args:
        source: a folder, or a hub id.
        output: the folder to write; it must not exist or must be empty.

    Raises:
        InputError: there is no such model, or the output folder is not empty.
        CheckpointError: the model is damaged or not supported, or gives other results than transformers.
        EngineError: no engine runs on this machine.
    """
    _check_output(output)
    folder = fetch(source)
    check_supported(folder)
    weights = find_weights(folder)
    with _beside(output) as work:
        raw, written = work / "original" / folder.resolve().name, work / "written"
        try:
            imported = _convert(folder, weights, raw, written)
        except Q8Error as error:
            text = str(error).replace(str(raw / FLOAT_FILE), str(folder / weights.name))
            raise type(error)(text.replace(str(raw), str(folder)).replace(str(written), str(folder))) from error
        output.parent.mkdir(parents=True, exist_ok=True)
        written.rename(output)
    return replace(imported, folder=output)


def _convert(folder: Path, weights: Weights, raw: Path, written: Path) -> Imported:
    """Write the model's folder and prove it."""
    original = folder
    if not weights.ready:
        raw.mkdir(parents=True)
        shutil.copyfile(folder / CONFIG_FILE, raw / CONFIG_FILE)
        weights.gather(raw / FLOAT_FILE)
        original = raw
    source = open_source(original)
    source.check_values()
    written.mkdir()
    write_tensors(written / FLOAT_FILE, _own_tensors(source))
    architecture = _write_config(source, written)
    tokenizer = write_tokenizer(folder, written)
    probe = written.with_name("probe")
    probe.mkdir()
    # transformers reads shards itself; pickles are only read by the process without a network
    theirs = original if weights.pickled else folder
    proof = prove(folder, theirs, open_source(written), probe)
    used = set(source.stored.values())
    return Imported(
        written,
        weights.name,
        weights.pickled,
        architecture,
        source.head,
        tuple(sorted({source.file.dtype(name) for name in used})),
        tuple(sorted(set(source.file) - used)),
        tokenizer,
        proof,
    )


def _own_tensors(source: FloatSource) -> dict[str, Array]:
    """Return the model's tensors by its own names, in float32, which represents every value of a half type."""
    used = set(source.stored.values())
    names = read_names(source.file, source.config.family, str(source.file.path)).stored
    return {name: source.file[found].astype(np.float32, copy=False) for name, found in names.items() if found in used}


def _write_config(source: FloatSource, target: Path) -> str:
    """Write the config with float32 as dtype, label names as strings, and a matching class; return the class."""
    values = cast("dict[str, Any]", read_json(source.path / CONFIG_FILE, CheckpointError))
    values.pop("torch_dtype", None)
    values["dtype"] = "float32"
    if values.get("id2label"):
        values["id2label"] = {str(i): label for i, label in enumerate(source.labels)}
    if source.head is None:
        values["architectures"] = [encoder_class(CONFIG_MAPPING[values["model_type"]]).__name__]
    text = json.dumps(values, indent=2, ensure_ascii=False)
    (target / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    return ", ".join(values["architectures"])


def _check_output(output: Path) -> None:
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise InputError(f"{output} is there already; --output names a folder that does not exist yet, or is empty")


@contextmanager
def _beside(output: Path) -> Generator[Path]:
    """Make a temporary folder on the same disk as the output, which is removed at the end."""
    parent = next(folder for folder in output.resolve().parents if folder.is_dir())
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}.import-", dir=parent))
    try:
        yield work
    finally:
        shutil.rmtree(work)
