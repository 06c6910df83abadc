"""When a request is sent again, and after how long: pure decisions, so that both clients share them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from service.client.errors import ClientError

_RETRIED = (429, 503)


@dataclass(frozen=True)
class Retry:
    """When a client tries again: after 429, 503 and broken connections, and nothing else.

    Args:
        attempts: how often a request is sent at most; 1: no retry.
        deadline_s: no attempt starts, and no pause ends, later than this after the first attempt.
        base_s: mean of the first pause; each further pause is twice as long.
        cap_s: longest pause where the server names none.
    """

    attempts: int = 4
    deadline_s: float = 30.0
    base_s: float = 0.1
    cap_s: float = 5.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts is {self.attempts}; at least 1 is needed")
        for name in ("deadline_s", "base_s", "cap_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")


class Attempts:
    """The attempts of one request: given an outcome, returns the pause before the next attempt, or raises.

    The pause is drawn uniformly from 0 to twice the doubling base ("full jitter"), so that clients that were refused
    together do not return together. A Retry-After is waited for in full, plus the drawn pause.
    """

    def __init__(
        self,
        policy: Retry,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._draw = draw
        self._end = clock() + policy.deadline_s
        self._made = 0

    def begin(self, timeout_s: float) -> float:
        """Count an attempt and return its time limit in seconds, which ends at the deadline at the latest."""
        self._made += 1
        return max(0.001, min(timeout_s, self._end - self._clock()))

    def after_failure(self, error: httpx.TransportError) -> float:
        """Return the pause after a failed attempt without an answer.

        Raises:
            ClientError: it is not tried again.
        """
        return self._pause(_describe_failure(error), again=not _is_timeout(error))

    def after_answer(self, response: httpx.Response) -> float:
        """Return the pause after an answer that is not 2xx.

        Raises:
            ClientError: it is not tried again.
        """
        return self._pause(_describe_answer(response), again=response.status_code in _RETRIED)

    def _pause(self, error: ClientError, *, again: bool) -> float:
        error.attempts = self._made
        if not again or self._made >= self._policy.attempts:
            raise error
        longest = min(self._policy.cap_s, 2 * self._policy.base_s * 2 ** (self._made - 1))
        pause = (error.retry_after_s or 0.0) + self._draw(0.0, longest)
        if self._clock() + pause >= self._end:  # no time for another attempt
            raise error
        return pause


def operation_limits(limit_s: float) -> httpx.Timeout:
    """Return the time limits of the operations of an attempt.

    Connecting gets less time than the attempt, so that a failed connection, which is tried again, can be told from a
    slow answer, which is not.
    """
    return httpx.Timeout(limit_s, connect=0.95 * limit_s)


def too_slow(limit_s: float) -> httpx.ReadTimeout:
    """Return the error of an attempt that exceeds its limit."""
    return httpx.ReadTimeout(f"not complete after {limit_s:.3g} s")


def _is_timeout(error: httpx.TransportError) -> bool:
    """Whether the server may still be computing, which it cannot if the connection failed."""
    return isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout)


def _describe_failure(error: httpx.TransportError) -> ClientError:
    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if _is_timeout(error):
        return ClientError(f"no answer in time: {reason}", error_type="timeout")
    return ClientError(f"the connection failed: {reason}", error_type="connection")


def _describe_answer(response: httpx.Response) -> ClientError:
    """Read the error body; an answer from something else, such as a proxy, has none."""
    try:
        body: Any = response.json()
    except ValueError:
        body = None
    told: dict[str, Any] = body if isinstance(body, dict) else {}
    return ClientError(
        str(told.get("error", f"HTTP {response.status_code} {response.reason_phrase}")),
        status=response.status_code,
        error_type=str(told.get("error_type", "http_error")),
        request_id=response.headers.get("x-request-id"),
        retry_after_s=parse_retry_after(response.headers.get("retry-after")),
    )


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Return the seconds that a Retry-After header asks for, as a number or a date (RFC 9110, 10.2.3), or None."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())
