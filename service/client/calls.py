"""From method calls to HTTP requests, for both clients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypedDict, TypeVar

from service.client import results
from service.client.results import Answer, Classification, Comparison, Info, Meta

T = TypeVar("T")

Text = str | tuple[str, str]
"""A text, or a pair of texts."""

Variants = tuple[str, str]
"""Two variants, ``MODEL@BACKEND``, of the same task."""


class ClassifyOptions(TypedDict, total=False):
    """How to classify; the server's defaults apply to whatever is left out."""

    top_k: int
    function_to_apply: Literal["softmax", "sigmoid", "none"]
    truncation: bool


class QAOptions(TypedDict, total=False):
    """How to search for an answer; the server's defaults apply to whatever is left out."""

    doc_stride: int
    max_answer_len: int
    max_seq_len: int
    max_question_len: int
    handle_impossible_answer: bool
    align_to_words: bool


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and how to read its answer; without a body it is a GET."""

    path: str
    body: Mapping[str, Any] | None
    build: Callable[[Any, Meta], T]

    @property
    def method(self) -> str:
        """GET or POST."""
        return "GET" if self.body is None else "POST"


def classify(text: Text, backend: str | None, model: str | None, options: ClassifyOptions) -> Call[Classification]:
    """Classify one text or pair.

    Raises:
        TypeError: neither of them.
    """
    return Call(
        "classify",
        _body(_shape(text, "for several texts call classify_batch"), backend, model, options),
        results.classification,
    )


def classify_batch(
    texts: Sequence[Text], backend: str | None, model: str | None, options: ClassifyOptions
) -> Call[list[Classification]]:
    """Classify several texts or pairs.

    Raises:
        TypeError: a single text, which would be read as a list of letters, or an element that is neither text nor pair.
    """
    if isinstance(texts, str):
        raise TypeError("classify_batch takes a list of texts; for one text call classify")
    shaped = [_shape(text, f"see texts[{place}]") for place, text in enumerate(texts)]
    return Call("classify", _body(shaped, backend, model, options), results.classifications)


def qa(question: str, context: str, backend: str | None, model: str | None, options: QAOptions) -> Call[Answer]:
    """Find the best answer."""
    return Call("qa", _body(_pair(question, context), backend, model, options), results.answer)


def qa_top(
    question: str, context: str, top_k: int, backend: str | None, model: str | None, options: QAOptions
) -> Call[list[Answer]]:
    """Find the best few answers."""
    return Call("qa", _body(_pair(question, context), backend, model, {**options, "top_k": top_k}), results.answers)


def qa_batch(
    pairs: Sequence[tuple[str, str]], backend: str | None, model: str | None, options: QAOptions
) -> Call[list[Answer]]:
    """Find the best answer to each question."""
    return Call("qa", _body([_pair(*pair) for pair in pairs], backend, model, options), results.answers)


def compare(text: str, model: str | None, variants: Variants | None) -> Call[Comparison[Classification]]:
    """Classify a text on both backends, or on two variants."""
    return Call("compare", _compared(text, model, variants), results.text_comparison)


def compare_qa(question: str, context: str, model: str | None, variants: Variants | None) -> Call[Comparison[Answer]]:
    """Answer a question on both backends, or on two variants."""
    return Call("compare", _compared(_pair(question, context), model, variants), results.question_comparison)


def info() -> Call[Info]:
    """Ask what is loaded."""
    return Call("info", None, results.info)


def headers(api_key: str | None) -> dict[str, str]:
    """Return the headers of every request."""
    return {} if api_key is None else {"authorization": f"Bearer {api_key}"}


def _shape(text: object, advice: str) -> str | dict[str, str]:
    match text:
        case str():
            return text
        case tuple((str(first), str(second))):
            return {"text": first, "text_pair": second}
        case _:
            raise TypeError(f"a text, or a pair as a tuple of two texts, is expected; {advice}")


def _pair(question: str, context: str) -> dict[str, str]:
    return {"question": question, "context": context}


def _compared(inputs: Any, model: str | None, variants: Variants | None) -> dict[str, Any]:
    body = _body(inputs, None, model, {})
    return body if variants is None else {**body, "variants": list(variants)}


def _body(inputs: Any, backend: str | None, model: str | None, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what the caller did not set, so that the server's defaults apply."""
    body: dict[str, Any] = {"inputs": inputs}
    if parameters:
        body["parameters"] = dict(parameters)
    if backend is not None:
        body["backend"] = backend
    if model is not None:
        body["model"] = model
    return body
