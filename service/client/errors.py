"""The one exception of the client."""

from __future__ import annotations


class ClientError(Exception):
    """Raised for a request that got no usable answer.

    Args:
        message: the server's sentence, or what went wrong on the way.
        status: the answer's status; None where there was no answer.
        error_type: the server's fixed word (such as ``queue_full``), or ``connection``, ``timeout`` or ``bad_answer``.
        request_id: identifies the request in the server's log.
        retry_after_s: how long the server asked to wait.
        attempts: how often the request was sent.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        error_type: str,
        request_id: str | None = None,
        retry_after_s: float | None = None,
        attempts: int = 1,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error_type = error_type
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.attempts = attempts

    def __str__(self) -> str:
        place = self.error_type if self.status is None else f"{self.status} {self.error_type}"
        identity = "" if self.request_id is None else f", request {self.request_id}"
        return f"{self.args[0]} ({place}{identity}, attempts: {self.attempts})"
