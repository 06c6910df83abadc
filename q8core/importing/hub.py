"""The source of an import: a local folder, or the files of a hub id."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from q8core.checkpoint.manifest import FLOAT_FILE
from q8core.errors import InputError
from q8core.importing.weights import LAYOUTS, PICKLE

_DESCRIPTIONS = [
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "vocab.json", "merges.txt", "*.model", "adapter_config.json", "*.index.json",
]  # fmt: skip
_SAFETENSORS = [FLOAT_FILE, f"{Path(FLOAT_FILE).stem}-*-of-*.safetensors"]
_PICKLES = [PICKLE, f"{Path(PICKLE).stem}-*-of-*.bin"]


def fetch(source: str) -> Path:
    """Return the folder of a model; from the hub no code is fetched, and pickles only if there are no safetensors.

    Raises:
        InputError: there is no such folder, and it cannot be fetched from the hub.
    """
    if Path(source).is_dir():
        return Path(source)
    folder = _download(source, [*_DESCRIPTIONS, *_SAFETENSORS])
    if not any((folder / name).is_file() for name in LAYOUTS if not name.startswith(PICKLE)):
        folder = _download(source, [*_DESCRIPTIONS, *_PICKLES])
    return folder


def _download(source: str, patterns: list[str]) -> Path:
    try:
        # patterns match whole paths: the second one excludes subfolders with files for other runtimes
        return Path(snapshot_download(source, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise InputError(
            f"{source!r} is no folder, and the hub cannot be reached (or HF_HUB_OFFLINE is set) and has not been asked "
            "for it before; with a connection, import it again, or import a folder that holds its files"
        ) from error
    except Exception as error:  # the hub client raises many kinds, all of which mean that it cannot be fetched
        reason = " ".join(str(error).split())
        raise InputError(f"{source!r} is neither a folder nor to be had from the hub: {reason}") from error
