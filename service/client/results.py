"""What the client returns: answers as frozen dataclasses, each with what the headers said about its request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx

from service.client.errors import ClientError

T = TypeVar("T")


@dataclass(frozen=True)
class Meta:
    """One request as the server saw it; times in milliseconds, None where the answer had no such header."""

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
    """A piece of the context, ``context[start:end]``; empty: the context does not say."""

    answer: str
    score: float
    start: int
    end: int
    meta: Meta


@dataclass(frozen=True)
class Share(Generic[T]):
    """What one backend answered, and what it took; ``memory_bytes`` by kind."""

    answer: T
    queue_ms: float
    inference_ms: float
    kernel: str
    memory_bytes: Mapping[str, int]


@dataclass(frozen=True)
class Comparison(Generic[T]):
    """Both backends' answers to the same tokens.

    ``delta`` holds ``max_abs_prob`` of labels, ``span_f1`` of answers, or ``abs_diff`` of the numbers that a regression
    predicts, where ``agree`` is None; ``speedup`` is fp32's inference time over int8's.
    """

    agree: bool | None
    speedup: float
    delta: Mapping[str, float]
    shares: Mapping[str, Share[T]]
    meta: Meta


@dataclass(frozen=True)
class Info:
    """What the service says of itself; ``raw`` is all of /info."""

    version: str
    state: str
    default_backend: str
    raw: Mapping[str, Any]


def parse(response: httpx.Response, build: Callable[[Any, Meta], T]) -> T:
    """Build a result from a 2xx answer.

    Raises:
        ClientError: the body is not what the service answers; something else stands at that address.
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
    """The answer to one text."""
    [row] = body
    return Classification(_labels(row), meta)


def classifications(body: Any, meta: Meta) -> list[Classification]:
    """The answer to several texts."""
    return [Classification(_labels(row), meta) for row in body]


def answer(body: Any, meta: Meta) -> Answer:
    """The answer to one question."""
    return Answer(body["answer"], float(body["score"]), int(body["start"]), int(body["end"]), meta)


def answers(body: Any, meta: Meta) -> list[Answer]:
    """Several answers to one question, or one to each of several (or to one that has a single answer)."""
    return [answer(row, meta) for row in (body if isinstance(body, list) else [body])]


def text_comparison(body: Any, meta: Meta) -> Comparison[Classification]:
    """Both backends' labels of one text."""
    return _comparison(body, meta, classification)


def question_comparison(body: Any, meta: Meta) -> Comparison[Answer]:
    """Both backends' answers to one question."""
    return _comparison(body, meta, answer)


def info(body: Any, meta: Meta) -> Info:
    """What the service says of itself."""
    return Info(body["version"], body["state"], body["default_backend"], body)


def _comparison(body: Any, meta: Meta, build: Callable[[Any, Meta], T]) -> Comparison[T]:
    shares = {
        backend: Share(
            build(share["answer"], meta),
            float(share["queue_ms"]),
            float(share["inference_ms"]),
            share["kernel"],
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
