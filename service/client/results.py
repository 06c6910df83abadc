"""Results of the client: answers as frozen dataclasses, each with what the headers said about its request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx

from service.client.errors import ClientError

T = TypeVar("T")


@dataclass(frozen=True)
class Meta:
    """Facts about one request from the answer's headers; times in milliseconds, None where a header is missing."""

    request_id: str | None
    backend: str | None
    model: str | None
    total_ms: float | None
    queue_ms: float | None
    inference_ms: float | None
    tokens: int | None
    truncated: int | None
    windows: int | None


@dataclass(frozen=True)
class Label:
    """A label and its score."""

    label: str
    score: float


@dataclass(frozen=True)
class Classification:
    """The labels of one text, best first."""

    labels: tuple[Label, ...]
    meta: Meta

    @property
    def label(self) -> str:
        """The best label."""
        return self.labels[0].label

    @property
    def score(self) -> float:
        """The best label's score."""
        return self.labels[0].score


@dataclass(frozen=True)
class Answer:
    """A span of the context, ``context[start:end]``; empty if the context has no answer."""

    answer: str
    score: float
    start: int
    end: int
    meta: Meta


@dataclass(frozen=True)
class Share(Generic[T]):
    """One backend's or variant's answer, its times and its memory; ``memory_bytes`` by kind, ``bits`` as in /info."""

    answer: T
    queue_ms: float
    inference_ms: float
    kernel: str
    bits: str
    memory_bytes: Mapping[str, int]


@dataclass(frozen=True)
class Comparison(Generic[T]):
    """The answers of both backends, or of two variants, to the same input; ``shares`` by their names.

    ``delta`` holds ``max_abs_prob`` for labels, ``span_f1`` for answers, or ``abs_diff`` for the numbers of a
    regression, whose ``agree`` is None. ``speedup`` is the first one's inference time divided by the second's.
    """

    agree: bool | None
    speedup: float
    delta: Mapping[str, float]
    shares: Mapping[str, Share[T]]
    meta: Meta


@dataclass(frozen=True)
class Info:
    """Facts about the service; ``raw`` is all of /info."""

    version: str
    state: str
    default_backend: str
    raw: Mapping[str, Any]


def parse(response: httpx.Response, build: Callable[[Any, Meta], T]) -> T:
    """Build a result from a 2xx answer.

    Raises:
        ClientError: the body is not one of this service's; something else answers at that address.
    """
    meta = _meta(response)
    try:
        return build(response.json(), meta)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ClientError(
            f"the answer is not one of a q8bert service: {type(error).__name__}: {error}",
            status=response.status_code,
            error_type="bad_answer",
            request_id=meta.request_id,
        ) from error


def classification(body: Any, meta: Meta) -> Classification:
    """Build the answer to one text."""
    [row] = body
    return Classification(_labels(row), meta)


def classifications(body: Any, meta: Meta) -> list[Classification]:
    """Build the answers to several texts."""
    return [Classification(_labels(row), meta) for row in body]


def answer(body: Any, meta: Meta) -> Answer:
    """Build the answer to one question."""
    return Answer(body["answer"], float(body["score"]), int(body["start"]), int(body["end"]), meta)


def answers(body: Any, meta: Meta) -> list[Answer]:
    """Build several answers to one question, or one answer to each of several questions."""
    return [answer(row, meta) for row in (body if isinstance(body, list) else [body])]


def text_comparison(body: Any, meta: Meta) -> Comparison[Classification]:
    """Build the comparison of two variants' labels."""
    return _comparison(body, meta, classification)


def question_comparison(body: Any, meta: Meta) -> Comparison[Answer]:
    """Build the comparison of two variants' answers."""
    return _comparison(body, meta, answer)


def info(body: Any, meta: Meta) -> Info:
    """Build the facts about the service."""
    return Info(body["version"], body["state"], body["default_backend"], body)


def _comparison(body: Any, meta: Meta, build: Callable[[Any, Meta], T]) -> Comparison[T]:
    shares = {
        backend: Share(
            build(share["answer"], meta),
            float(share["queue_ms"]),
            float(share["inference_ms"]),
            share["kernel"],
            share["bits"],
            share["memory_bytes"],
        )
        for backend, share in body["results"].items()
    }
    agree = None if body["agree"] is None else bool(body["agree"])
    return Comparison(agree, float(body["speedup"]), body["delta"], shares, meta)


def _labels(row: Any) -> tuple[Label, ...]:
    return tuple(Label(entry["label"], float(entry["score"])) for entry in row)


def _meta(response: httpx.Response) -> Meta:
    get = response.headers.get

    def number(name: str) -> float | None:
        value = get(name)
        return None if value is None else float(value)

    def count(name: str) -> int | None:
        value = get(name)
        return None if value is None else int(value)

    return Meta(
        request_id=get("x-request-id"),
        backend=get("x-q8bert-backend"),
        model=get("x-q8bert-model"),
        total_ms=number("x-total-time"),
        queue_ms=number("x-queue-time"),
        inference_ms=number("x-inference-time"),
        tokens=count("x-compute-tokens"),
        truncated=count("x-q8bert-truncated"),
        windows=count("x-q8bert-windows"),
    )
