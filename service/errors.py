"""The errors of requests, and the one table that gives each a status and an error_type.

Every error answer has the body ``{"error", "error_type", "request_id", "details"?}``: ``error`` is a sentence
for a person (and what Hugging Face and Open Inference clients read), ``error_type`` is for programs.

ServiceError
 ├── BadInput           the body is well-formed but asks for something impossible
 ├── EmptyInput         an empty list of inputs
 ├── InputTooLong       a text has more tokens than the model takes, and truncation is off
 ├── UnknownBackend     no such backend for this task
 ├── UnknownModel       no checkpoint for this task is loaded
 ├── Unauthorized       no key, or a wrong one, where one is needed
 ├── BodyTooSlow        the body did not arrive in time
 ├── EncodedBody        the body is compressed
 ├── PathNotAllowed     a model outside the folders that may be loaded from
 ├── ModelConflict      another model is being loaded, the name belongs to another task, or others need the model
 ├── ModelRejected      the new checkpoint is damaged or fails its self-test; the old one keeps serving
 ├── BodyTooLarge       more bytes than the payload limit
 ├── TooManyTokens      one request alone exceeds the queue
 ├── QueueFull          the server has as much work as it can finish in time
 ├── DeadlineExceeded   the answer would come after the request's time limit
 ├── ClientClosed       the client left before its answer (nobody receives it; counted as 499)
 ├── NotReady           still loading
 ├── Draining           shutting down
 ├── EngineDead         the engine thread has stopped
 └── InferenceFailed    an engine raised while computing this request's batch
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from q8core.errors import InputError

if TYPE_CHECKING:  # the engines load while FastAPI is imported
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException


class ServiceError(Exception):
    """Base of all errors of requests; the message is a sentence for the client."""

    retry_after_s: float | None = None
    headers: Mapping[str, str] = {}

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s


class BadInput(ServiceError):
    """Raised when a well-formed body asks for something impossible."""


class EmptyInput(ServiceError):
    """Raised for an empty list of inputs."""


class InputTooLong(ServiceError):
    """Raised when a text does not fit the model and the client switched truncation off."""


class UnknownBackend(ServiceError):
    """Raised when the body or the header names a backend that is not loaded for the task."""


class UnknownModel(ServiceError):
    """Raised when no such model is loaded for the task."""


class Unauthorized(ServiceError):
    """Raised when a request has no valid key where one is needed."""

    headers: Mapping[str, str] = {"www-authenticate": 'Bearer realm="q8bert"'}


class BodyTooSlow(ServiceError):
    """Raised when a request body takes too long to arrive; the connection is closed after the answer."""

    headers: Mapping[str, str] = {"connection": "close"}


class EncodedBody(ServiceError):
    """Raised for a compressed request body; the answer names the accepted encoding (RFC 9110, 12.5.3)."""

    headers: Mapping[str, str] = {"accept-encoding": "identity"}


class PathNotAllowed(ServiceError):
    """Raised for a model path outside the folders that the operator allowed."""


class ModelConflict(ServiceError):
    """Raised when a load conflicts with a loaded model or another load, and for unloading a model that others need."""


class ModelRejected(ServiceError):
    """Raised when a new checkpoint cannot serve; the old one keeps serving."""


class BodyTooLarge(ServiceError):
    """Raised when a request body exceeds the payload limit."""


class TooManyTokens(ServiceError):
    """Raised when one request alone has more tokens than the queue holds."""


class QueueFull(ServiceError):
    """Raised when the queue has no room, or could not be computed before the request's deadline.

    Args:
        message: a sentence for the client.
        retry_after_s: when to try again, in seconds.
        departures: how often anything had left the queue until then; None if it was not the queue that refused.
    """

    retry_after_s = 1.0

    def __init__(self, message: str, *, retry_after_s: float | None = None, departures: int | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.departures = departures


class DeadlineExceeded(ServiceError):
    """Raised when a request's time limit passes before its answer is ready."""


class ClientClosed(ServiceError):
    """Raised when the client closed the connection before its answer."""


class NotReady(ServiceError):
    """Raised while checkpoints are loading, self-testing and warming up."""

    retry_after_s = 1.0


class Draining(ServiceError):
    """Raised for new requests while the server shuts down."""

    retry_after_s = 1.0


class EngineDead(ServiceError):
    """Raised when the engine thread has stopped: only a restart helps."""

    retry_after_s = 10.0


class InferenceFailed(ServiceError):
    """Raised for each request of a batch whose computation failed."""


@dataclass(frozen=True)
class ErrorKind:
    """One row of the table: how an exception is answered."""

    status: int
    error_type: str
    meaning: str


_UNSUPPORTED = ErrorKind(
    415, "unsupported_media_type", "the Content-Type is not application/json, or Content-Encoding is not identity"
)
INTERNAL = ErrorKind(500, "internal", "a fault in the server; the request id finds it in the log")

ERROR_KINDS: Mapping[type[Exception], ErrorKind] = {
    EmptyInput: ErrorKind(400, "empty_input", "the list of inputs is empty"),
    UnknownBackend: ErrorKind(404, "unknown_backend", "no such backend is loaded for this task"),
    UnknownModel: ErrorKind(404, "unknown_model", "no such model is loaded for this task"),
    Unauthorized: ErrorKind(401, "unauthorized", "keys are set, and the header Authorization: Bearer has none of them"),
    BodyTooSlow: ErrorKind(408, "body_too_slow", "the body did not arrive within --body-timeout-s"),
    BodyTooLarge: ErrorKind(413, "body_too_large", "the body exceeds the payload limit"),
    EncodedBody: _UNSUPPORTED,
    TooManyTokens: ErrorKind(413, "too_many_tokens", "one request holds more tokens than the queue"),
    BadInput: ErrorKind(422, "validation", "a field is missing, unknown, or has a wrong type or value"),
    InputError: ErrorKind(422, "validation", "a field is missing, unknown, or has a wrong type or value"),
    InputTooLong: ErrorKind(422, "input_too_long", "a text does not fit the model and truncation is off"),
    QueueFull: ErrorKind(429, "queue_full", "the queue is full; Retry-After says when to come back"),
    ClientClosed: ErrorKind(499, "client_closed", "the client left (only in metrics)"),
    InferenceFailed: INTERNAL,
    NotReady: ErrorKind(503, "not_ready", "loading, self-testing or warming up"),
    Draining: ErrorKind(503, "draining", "shutting down"),
    EngineDead: ErrorKind(503, "engine_dead", "the engine stopped; restart the server"),
    DeadlineExceeded: ErrorKind(504, "deadline_exceeded", "no answer within the request's time limit"),
}

ADMIN_KINDS: Mapping[type[Exception], ErrorKind] = {
    PathNotAllowed: ErrorKind(403, "path_not_allowed", "the path is in no folder of --model-root"),
    ModelConflict: ErrorKind(
        409, "model_conflict", "another model is being loaded, the name has another task, or another model needs it"
    ),
    ModelRejected: ErrorKind(422, "model_rejected", "the checkpoint is damaged or fails its self-test"),
}
"""More rows, for the routes under /admin only."""

# Errors that the framework raises itself, by status.
HTTP_KINDS: Mapping[int, ErrorKind] = {
    400: ErrorKind(400, "bad_json", "the body is not JSON"),
    404: ErrorKind(404, "not_found", "no such path"),
    405: ErrorKind(405, "method_not_allowed", "the path exists, but not for this method"),
    415: _UNSUPPORTED,
    422: ErrorKind(422, "validation", "a field is missing, unknown, or has a wrong type or value"),
}


MOST_DETAILS = 20
"""How many problems of a body are listed."""
UNION_MARK = "|"
"""Prefix of the names of union members in validation paths, which are not part of what the client sent."""


@dataclass(frozen=True)
class ErrorAnswer:
    """Status, body (without the request id) and headers of an error response."""

    kind: ErrorKind
    message: str
    headers: Mapping[str, str]
    details: Sequence[Mapping[str, Any]] = ()

    def body(self, request_id: str) -> dict[str, Any]:
        """Return the JSON body."""
        body: dict[str, Any] = {
            "error": _printable(self.message),
            "error_type": self.kind.error_type,
            "request_id": request_id,
        }
        if self.details:
            body["details"] = list(self.details)
        return body

    def content(self, request_id: str) -> bytes:
        """Return the body's bytes."""
        return json.dumps(self.body(request_id), ensure_ascii=False, separators=(",", ":")).encode()


def describe_error(error: Exception) -> ErrorAnswer:
    """Return the answer to an exception; one that the table does not have is an internal error without details."""
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    if isinstance(error, RequestValidationError):
        return _describe_validation(error)
    if isinstance(error, HTTPException):
        return _describe_http(error)
    for kind_of in type(error).__mro__:
        kind = ERROR_KINDS.get(kind_of) or ADMIN_KINDS.get(kind_of)
        if kind is not None:
            if isinstance(error, ServiceError):
                return ErrorAnswer(kind, str(error), {**_retry_header(error.retry_after_s), **error.headers})
            return ErrorAnswer(kind, str(error), {})
    return ErrorAnswer(INTERNAL, "internal error; the server's log has the details under this request id", {})


def _retry_header(retry_after_s: float | None) -> dict[str, str]:
    """Return the header in whole seconds, at least one: it allows no fractions."""
    return {} if retry_after_s is None else {"retry-after": str(max(1, math.ceil(retry_after_s)))}


def _describe_http(error: HTTPException) -> ErrorAnswer:
    kind = HTTP_KINDS.get(error.status_code)
    if kind is None:
        kind = ErrorKind(error.status_code, "http_error", "refused by the HTTP layer")
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if headers.get("allow") == "GET":
        headers["allow"] = "GET, HEAD"  # see `service.http.exchange`
    message = {
        400: "the body cannot be read as JSON (wrong encoding, nested too deep, or a number too long)",
        404: "no such path; GET /docs lists them, unless it is switched off",
        405: f"method not allowed here; allowed: {headers.get('allow', 'see /docs')}",
    }.get(error.status_code, str(error.detail))
    return ErrorAnswer(kind, message, headers)


def _describe_validation(error: RequestValidationError) -> ErrorAnswer:
    """Name the first problems in the message and more in the details, without repeating the client's text."""
    problems: Sequence[dict[str, Any]] = error.errors()
    first = problems[0]
    if first["type"] == "json_invalid":
        place, reason = first["loc"][-1], first["ctx"]["error"]
        return ErrorAnswer(HTTP_KINDS[400], f"the body is not valid JSON: {reason} at character {place}", {})
    if tuple(first["loc"]) == ("body",):
        if first["type"] == "missing":
            return ErrorAnswer(HTTP_KINDS[400], "the body is empty; send a JSON object", {})
        if isinstance(error.body, bytes):
            # FastAPI leaves a body unparsed when its Content-Type is not JSON
            return ErrorAnswer(HTTP_KINDS[415], "send the body with Content-Type: application/json", {})
    details = [
        {"field": _field_path(problem["loc"]), "problem": _printable(str(problem["msg"])), "type": problem["type"]}
        for problem in problems[:MOST_DETAILS]
    ]
    sentence = "; ".join(f"{d['field']}: {d['problem']}" for d in details[:3])
    if len(problems) > 3:
        sentence += f"; and {len(problems) - 3} more"
    return ErrorAnswer(HTTP_KINDS[422], sentence, {}, details)


def _field_path(location: Sequence[str | int]) -> str:
    """``("body", "inputs", 3)`` -> ``inputs[3]``; the body itself is ``body``."""
    path = ""
    for part in location[1:]:
        if isinstance(part, str) and part.startswith(UNION_MARK):
            continue
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return _printable(path.removeprefix(".") or str(location[0]))


def _printable(text: str) -> str:
    """Replace lone surrogates, which JSON can carry and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")
