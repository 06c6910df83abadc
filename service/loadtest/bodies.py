"""The requests to send: bodies from a file, or built-in texts with the lengths of real ones."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from q8core.bench import sample_lengths
from q8core.documents import parse_json
from q8core.errors import InputError
from q8core.text_file import lines_of, read_text
from service.loadtest.target import Target

TASKS = ("classify", "qa", "compare")

# Each is one token of BERT's uncased vocabulary, so that a text has exactly the wanted length.
_WORDS = (
    "the", "a", "of", "and", "in", "to", "was", "is", "for", "as", "on", "with", "by", "he", "that", "at",
    "from", "his", "it", "an", "were", "are", "which", "this", "be", "had", "first", "not", "also", "one",
    "their", "has", "two", "new", "who", "but", "other", "after", "its", "time", "film", "good", "bad", "story",
    "year", "world", "people", "city",
)  # fmt: skip
_QUESTION_WORDS = 10


@dataclass(frozen=True)
class Ask:
    """One kind of request, ready to be sent: the task and the bytes of the whole HTTP request."""

    task: str
    payload: bytes


def load_asks(
    target: Target, tasks: Sequence[str], file: Path | None, backend: str | None, api_key: str | None
) -> list[Ask]:
    """Build the requests that a load test draws from.

    Args:
        target: the service.
        tasks: names from TASKS; with a file exactly one.
        file: JSON Lines of request bodies, sent as they are.
        backend: sent in a header; None: the server's default.
        api_key: sent as ``Authorization: Bearer``.

    Raises:
        InputError: an unknown task, a file that is not JSON Lines, or options that exclude each other.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown:
        raise InputError(f"--task is {unknown[0]!r}; allowed: {', '.join(TASKS)}")
    if file is not None and len(tasks) != 1:
        raise InputError(f"--file holds the bodies of one task; {len(tasks)} are given with --task")
    if backend is not None and "compare" in tasks:
        raise InputError("--backend and --task compare exclude each other: /compare asks both backends")
    headers = {"x-q8bert-backend": backend, "authorization": None if api_key is None else f"Bearer {api_key}"}
    asks: list[Ask] = []
    for task in tasks:
        bodies = _read_bodies(file) if file is not None else sample_bodies(task)
        asks += [Ask(task, _request(target, task, body, headers)) for body in bodies]
    return asks


def sample_bodies(task: str) -> list[bytes]:
    """Return bodies with as many tokens as real SST-2 sentences, or SQuAD questions with contexts."""
    draw = random.Random(0)
    lengths = sample_lengths.SQUAD if task == "qa" else sample_lengths.SST2
    return [json.dumps(_sample_body(task, length, draw)).encode() for length in lengths]


def _sample_body(task: str, tokens: int, draw: random.Random) -> dict[str, Any]:
    if task != "qa":
        return {"inputs": _words(tokens - 2, draw)}  # [CLS] [SEP]
    context = _words(tokens - _QUESTION_WORDS - 3, draw)
    return {"inputs": {"question": _words(_QUESTION_WORDS, draw), "context": context}}


def _words(number: int, draw: random.Random) -> str:
    return " ".join(draw.choices(_WORDS, k=number))


def _read_bodies(file: Path) -> list[bytes]:
    bodies: list[bytes] = []
    for number, line in enumerate(lines_of(read_text(file)), 1):
        if not line.strip():
            continue
        parse_json(line, file, number)
        bodies.append(line.encode())
    if not bodies:
        raise InputError(f"--file {file} holds no request bodies; one JSON object a line is expected")
    return bodies


def _request(target: Target, task: str, body: bytes, headers: Mapping[str, str | None]) -> bytes:
    lines = [
        f"POST {target.prefix}/{task} HTTP/1.1",
        f"host: {target.authority}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items() if value is not None),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
