"""Answers recorded requests on both backends offline, with the numbers that the shadow comparison would give.

Like the shadow comparison it computes one sequence at a time, so that the same requests give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from tqdm import tqdm

from q8core.arrays import Logits
from q8core.documents import parse_json
from q8core.engines.packing import TokenBatch
from q8core.engines.protocol import Engine
from q8core.errors import InputError
from q8core.text_file import lines_of, read_text
from service.errors import ServiceError, describe_error
from service.models.registry import Model
from service.queueing.batcher import Lane, WorkItem
from service.second_opinion.agreement import Case, compare_request
from service.second_opinion.compare import BACKENDS
from service.tasks import schemas
from service.tasks.encoding import ClassifyWork, QAWork
from service.tasks.work import Work

T = TypeVar("T")

# The service's limit protects its queue; there is none here.
_MAX_TOKENS = 2**31


@dataclass(frozen=True)
class Recorded:
    """One request of a file, encoded."""

    name: str
    model: Model
    work: Work[object]
    items: list[WorkItem]
    truncated: int
    """How many of its inputs were cut."""


def read_requests(file: Path, models: Mapping[str, Model]) -> list[Recorded]:
    """Read and encode JSON Lines of bodies for POST /classify or /qa; empty lines are skipped.

    Args:
        file: the file; a body with a question is one for /qa. Its backend is ignored.
        models: the model of each task.

    Raises:
        InputError: a line is not such a body (names the line), or the file is empty.
    """
    found: list[Recorded] = []
    for number, line in enumerate(lines_of(read_text(file)), start=1):
        if line.strip():
            body = parse_json(line, file, number)
            try:
                found.append(_read_request(f"line {number}", body, models))
            except (ServiceError, InputError, RequestValidationError) as error:
                raise InputError(f"{file}, line {number}: {describe_error(error).message}") from error
    if not found:
        raise InputError(f"{file} holds no request")
    return found


def replay(requests: Sequence[Recorded], engines: Mapping[Lane, Engine], *, with_texts: bool) -> Iterator[Case]:
    """Answer every request on both backends and compare, input by input, in the order of the file."""
    for request in tqdm(requests, desc="comparing", unit="request", leave=False, disable=None):
        logits = {
            backend: [_infer(engines[request.model.lane(backend)], item) for item in request.items]
            for backend in BACKENDS
        }
        yield from compare_request(request.name, request.work, request.items, logits, with_texts=with_texts)


def _infer(engine: Engine, item: WorkItem) -> Logits:
    packed = TokenBatch.pack([(item.input_ids, item.token_type_ids)])
    (logits,) = packed.split(engine.infer(packed), engine.reads)
    return logits


def _read_request(name: str, body: Any, models: Mapping[str, Model]) -> Recorded:
    task = "qa" if _asks(body) else "classify"
    model = models.get(task)
    if model is None:
        raise InputError(f"this is a request for {task}; the checkpoints are for {', '.join(models)}")
    work = _work(body, task, model)
    encoded = work.encode()
    return Recorded(name, model, work, encoded.items, encoded.truncated)


def _asks(body: Any) -> bool:
    """Whether a body is for /qa: it or its first input has a question or a context."""
    if not isinstance(body, dict):
        return False
    fields = cast("dict[str, Any]", body)
    inputs = fields.get("inputs")
    first = cast("list[Any]", inputs)[0] if isinstance(inputs, list) and inputs else inputs
    return any(isinstance(part, dict) and ("question" in part or "context" in part) for part in (fields, first))


def _work(body: Any, task: str, model: Model) -> Work[object]:
    try:
        if task == "classify":
            request = schemas.ClassifyRequest.model_validate(body)
            texts, parameters = request.items(), request.parameters or schemas.ClassifyParameters()
            return ClassifyWork(model, _not_empty(texts), parameters)
        asked = schemas.QARequest.model_validate(body)
    except ValidationError as error:
        # in the route's words, with the path inside the body and without the text
        problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]
        raise RequestValidationError(problems, body=body) from error
    questions, how = _not_empty(asked.items()), asked.parameters or schemas.QAParameters()
    return QAWork(model, questions, how, listed=isinstance(asked.inputs, list), max_tokens=_MAX_TOKENS)


def _not_empty(inputs: list[T]) -> list[T]:
    if not inputs:
        raise InputError("inputs is an empty list")
    return inputs
