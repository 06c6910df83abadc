"""The cache folder: files derived from checkpoints or measured on this machine, which may be deleted at any time.

Nothing in it is trusted: every file contains its key and a digest of its content, and both are checked when it is read.
A folder that cannot be written is not an error, but users are told.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, cast

log = logging.getLogger(__name__)

CACHE_VARIABLE = "Q8BERT_CACHE"
_MOST_BYTES = 2 * 2**30
_STALE_SECONDS = 24 * 3600
_RECORD_BYTES = 1_000_000

Key = Mapping[str, object]
"""Everything that a file depends on, as plain JSON values."""


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return `Q8BERT_CACHE` if set, else `XDG_CACHE_HOME`/q8bert, else ~/.cache/q8bert; it need not exist.

    Raises:
        OSError: if there is no home folder either.
    """
    if given := environment.get(CACHE_VARIABLE):
        return Path(given)
    base = environment.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # relative ones are invalid (XDG Base Directory Specification)
        return Path(base, "q8bert")
    try:
        return Path.home() / ".cache" / "q8bert"
    except RuntimeError as error:
        raise FileNotFoundError(f"this user has no home folder; set {CACHE_VARIABLE}") from error


def digest_of(value: object) -> str:
    """Return the sha256 of plain JSON values, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@cache
def code_digest() -> str:
    """Return a digest of this package's Python sources, part of every key: no release reads another's files."""
    digest, root = hashlib.sha256(), Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def cached_path(kind: str, key: Key, ending: str) -> Path:
    """Return the path of the file of this kind and key, which need not exist.

    Raises:
        OSError: if there is no cache folder.
    """
    return cache_folder() / f"{kind}-{digest_of(key)[:32]}.{ending}"


@contextmanager
def new_file(path: Path) -> Generator[BinaryIO]:
    """Yield an empty file that is renamed to `path`, complete, when the block ends; the folder is made if needed.

    If the block fails nothing is left. If another process was first, its file stays: both have the same key.

    Raises:
        OSError: if the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    file = part.open("x+b")
    try:
        with file:
            yield file
        try:
            os.link(part, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    _trim(path.parent, path)


def distrust(path: Path, reason: str) -> None:
    """Log that a file is damaged or has another key, and remove it if possible: it will be made again."""
    log.warning("cache file not trusted, made again: file=%s reason=%s", path, reason)
    with suppress(OSError):
        path.unlink(missing_ok=True)


def tell_unusable(error: OSError) -> str:
    """Log, once per process and problem, that the cache cannot be used; return the reason."""
    reason = error.strerror or str(error)
    with suppress(OSError):
        reason = f"{cache_folder()}: {reason}"
    _log_once(
        f"cache unusable: {reason}; weights are not shared between processes, and kernels are measured at each start "
        f"({CACHE_VARIABLE} sets the folder)"
    )
    return error.strerror or str(error)


@cache
def _log_once(message: str) -> None:
    log.warning("%s", message)


def mark_used(path: Path) -> None:
    """Mark a file as used: the least recently used files are removed first."""
    with suppress(OSError):  # a read-only folder
        os.utime(path)


def read_record(kind: str, key: Key) -> Any:
    """Return the plain JSON values stored for a key, or None.

    Raises:
        OSError: if there is no cache folder, or it cannot be read.
    """
    path = cached_path(kind, key, "json")
    try:
        with path.open("rb") as file:
            content = file.read(_RECORD_BYTES)
    except FileNotFoundError:
        return None
    try:
        record = cast("dict[str, Any]", json.loads(content))
        trusted = record["sha256"] == digest_of([record["key"], record["value"]]) and record["key"] == key
    except (ValueError, KeyError, TypeError):
        trusted, record = False, {}
    if trusted:
        return record["value"]
    distrust(path, "the digest or the key is another")
    return None


def write_record(kind: str, key: Key, value: object) -> None:
    """Store plain JSON values for a key.

    Raises:
        OSError: if they cannot be written.
    """
    record = {"key": key, "value": value, "sha256": digest_of([key, value])}
    with new_file(cached_path(kind, key, "json")) as file:
        file.write(json.dumps(record, indent=1).encode() + b"\n")


def _trim(folder: Path, newest: Path) -> None:
    """Remove leftovers of killed processes, and the least recently used files beyond `_MOST_BYTES` in total.

    A process that has mapped a removed file keeps its mapping.
    """
    with suppress(OSError):  # other processes remove files too
        files = [(path.stat(), path) for path in folder.iterdir() if path.is_file() and path != newest]
        room = _MOST_BYTES - newest.stat().st_size
        for state, path in sorted(files, key=lambda each: each[0].st_mtime, reverse=True):
            if path.suffix == ".part":
                if time.time() - state.st_mtime > _STALE_SECONDS:
                    path.unlink(missing_ok=True)
            elif path.suffix in (".json", ".packed"):
                room -= state.st_size
                if room < 0:
                    path.unlink(missing_ok=True)
