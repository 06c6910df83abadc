"""``q8bert.json``, the manifest: a checkpoint's description of itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from q8core.documents import parse_strict_json, validated_json
from q8core.errors import CheckpointError
from q8core.model.head import TaskKind
from q8core.quant.plan import Plan
from q8core.text_file import read_text

FORMAT_VERSION = 2
MANIFEST_FILE = "q8bert.json"
INT8_FILE = "model.int8.safetensors"
FLOAT_FILE = "model.safetensors"
# A manifest is a few kilobytes, and one with the most labels (q8core.tasks.labels) fits.
# A larger file is not a manifest and is not parsed.
MAX_MANIFEST_BYTES = 64_000_000


@dataclass(frozen=True)
class GoldenExample:
    """An input with the logits that each backend gave when the checkpoint was made.

    Logits are nested lists: ``(labels,)`` for classification, ``(length, 2)`` for QA.
    """

    input_ids: list[int]
    token_type_ids: list[int]
    logits: dict[str, list[float] | list[list[float]]]


@dataclass(frozen=True)
class PlanRecord:
    """A checkpoint's plan as stored in its manifest.

    Attributes:
        scheme: the scheme's values.
        encoder, head: the sizes of both; None in format 1, where config.json gives them.
    """

    scheme: dict[str, Any]
    encoder: dict[str, Any] | None = None
    head: dict[str, Any] | None = None

    @classmethod
    def of(cls, plan: Plan) -> PlanRecord:
        """Return the record of a quantized model's plan."""
        assert plan.scheme is not None
        return cls(plan.scheme.to_dict(), asdict(plan.spec), asdict(plan.head))


@dataclass(frozen=True)
class Manifest:
    """All data about a checkpoint except its weights."""

    name: str
    family: str
    task: TaskKind
    labels: tuple[str, ...]
    max_length: int
    plan: PlanRecord
    files: dict[str, dict[str, Any]]
    """File name -> ``{"sha256": hex digest, "bytes": size}`` of every other file of the checkpoint."""
    golden: tuple[GoldenExample, ...]
    training: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Return the manifest as JSON, the content of its file."""
        plain = asdict(self) | {"labels": list(self.labels)}
        return json.dumps({"format_version": self.format_version, **plain}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Parse and check ``q8bert.json``.

        Raises:
            CheckpointError: it is missing, too large, not JSON, of another format version, or has a missing or unknown
                field or one of the wrong type.
        """
        file = folder / MANIFEST_FILE
        if file.is_file() and file.stat().st_size > MAX_MANIFEST_BYTES:
            raise CheckpointError(f"{file} has {file.stat().st_size} bytes; at most {MAX_MANIFEST_BYTES} are read")
        text = read_text(file, CheckpointError)
        raw = parse_strict_json(text, file, CheckpointError)
        if not isinstance(raw, dict):
            raise CheckpointError(f"{file}: expected a JSON object")
        return cls._from_dict(file, cast(dict[str, Any], raw), text)

    @classmethod
    def _from_dict(cls, file: Path, raw: dict[str, Any], text: str) -> Manifest:
        version = raw.get("format_version")
        if type(version) is not int or version not in (1, FORMAT_VERSION):
            raise CheckpointError(f"{file}: format_version is {version!r}; this release reads 1 and {FORMAT_VERSION}")
        known = {f.name for f in fields(cls)} if version == FORMAT_VERSION else _FIELDS_OF_1
        needed = known - {"training", "scores"}
        if needed - raw.keys() or raw.keys() - known:
            missing, unknown = sorted(needed - raw.keys()), sorted(raw.keys() - known)
            raise CheckpointError(f"{file}: missing fields {missing}, unknown fields {unknown}")
        if raw["task"] not in ("classify", "qa"):
            raise CheckpointError(f"{file}: task is {raw['task']!r}; allowed: classify, qa")
        if version == 1:
            scheme = raw.pop("scheme")
            text = json.dumps({**raw, "family": "bert", "plan": {"scheme": scheme}})
        return validated_json(cls, text, f"{file}", CheckpointError)


_FIELDS_OF_1 = {f.name for f in fields(Manifest)} - {"family", "plan"} | {"scheme"}


def file_entry(path: Path) -> dict[str, Any]:
    """Return digest and size of one file, in the manifest's format."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}


def verify_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Check the size and digest of every listed file.

    Raises:
        CheckpointError: a file is missing, or its size or content differs.
    """
    for name, entry in files.items():
        path = folder / name
        if Path(name).name != name:
            raise CheckpointError(f"{folder / MANIFEST_FILE}: file name {name!r} leaves the folder")
        if not path.is_file():
            raise CheckpointError(f"{folder} lacks {name}, which its {MANIFEST_FILE} lists")
        if path.stat().st_size != entry.get("bytes"):
            raise CheckpointError(
                f"{path} has {path.stat().st_size} bytes, its {MANIFEST_FILE} says {entry.get('bytes')}: "
                "the file was truncated or replaced; copy the checkpoint again"
            )
        if file_entry(path)["sha256"] != entry.get("sha256"):
            raise CheckpointError(
                f"{path} does not match its sha256 in {MANIFEST_FILE}: the file was altered; copy the checkpoint again"
            )
