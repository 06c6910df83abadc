"""Answers recorded requests on two variants offline, with the numbers that the shadow comparison would give.

Like the shadow comparison it computes one sequence at a time, so that the same requests give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

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
from service.models.variant import Variant, named_errors
from service.queueing.batcher import Lane, WorkItem
from service.second_opinion.agreement import Case, Side, compare_request
from service.second_opinion.compare import FLOAT, INTEGER, check_comparable
from service.tasks import schemas
from service.tasks.encoding import ClassifyWork, QAWork
from service.tasks.work import Work

T = TypeVar("T")

# The service's limit protects its queue; there is none here.
_MAX_TOKENS = 2**31


class Compared(NamedTuple):
    """Two variants of a task: the one to judge, and the one to compare it with."""

    tested: Variant
    reference: Variant

    @classmethod
    def backends_of(cls, model: Model) -> Compared:
        """Return int8 and fp32 of one model."""
        return cls(Variant(model, INTEGER, INTEGER), Variant(model, FLOAT, FLOAT))

    def check(self) -> None:
        """Raise InputError if their answers cannot be compared."""
        try:
            check_comparable(self.tested, self.reference)
        except ServiceError as error:
            raise InputError(str(error)) from error


@dataclass(frozen=True)
class Reading:
    """A request as a variant's model reads it."""

    variant: Variant
    work: Work[object]
    items: list[WorkItem]
    truncated: int
    """How many of its inputs were cut."""

    def side(self, engines: Mapping[Lane, Engine]) -> Side:
        """Return it with the variant's logits, computed now."""
        engine = engines[self.variant.lane]
        return Side(self.variant.shown_as, self.work, self.items, [_infer(engine, item) for item in self.items])


@dataclass(frozen=True)
class Recorded:
    """One request of a file, as both variants' models read it."""

    name: str
    tested: Reading
    reference: Reading


def read_requests(file: Path, variants: Mapping[str, Compared]) -> list[Recorded]:
    """Read and encode JSON Lines of bodies for POST /classify or /qa; empty lines are skipped.

    Args:
        file: the file; a body with a question is one for /qa. Its backend is ignored.
        variants: the variants of each task.

    Raises:
        InputError: a line is not such a body (names the line), or the file is empty.
    """
    found: list[Recorded] = []
    for number, line in enumerate(lines_of(read_text(file)), start=1):
        if line.strip():
            body = parse_json(line, file, number)
            try:
                found.append(_read_request(f"line {number}", body, variants))
            except (ServiceError, InputError, RequestValidationError) as error:
                raise InputError(f"{file}, line {number}: {describe_error(error).message}") from error
    if not found:
        raise InputError(f"{file} holds no request")
    return found


def replay(requests: Sequence[Recorded], engines: Mapping[Lane, Engine], *, with_texts: bool) -> Iterator[Case]:
    """Answer every request on both variants and compare, input by input, in the order of the file."""
    for request in tqdm(requests, desc="comparing", unit="request", leave=False, disable=None):
        reference, tested = request.reference.side(engines), request.tested.side(engines)
        yield from compare_request(request.name, reference, tested, with_texts=with_texts)


def _infer(engine: Engine, item: WorkItem) -> Logits:
    packed = TokenBatch.pack([(item.input_ids, item.token_type_ids)])
    (logits,) = packed.split(engine.infer(packed), engine.reads)
    return logits


def _read_request(name: str, body: Any, variants: Mapping[str, Compared]) -> Recorded:
    task = "qa" if _asks(body) else "classify"
    pair = variants.get(task)
    if pair is None:
        raise InputError(f"this is a request for {task}; the checkpoints are for {', '.join(variants)}")
    work = _work(body, task, pair.tested.model)
    encoded = work.encode()
    tested = Reading(pair.tested, work, encoded.items, encoded.truncated)
    if pair.reference.model is pair.tested.model:
        return Recorded(name, tested, replace(tested, variant=pair.reference))
    with named_errors(pair.reference):
        again = work.again(pair.reference.model, range(work.inputs))
        encoded = again.encode()
    return Recorded(name, tested, Reading(pair.reference, again, encoded.items, encoded.truncated))


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
