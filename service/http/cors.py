"""Cross-origin requests: which origins may read answers, and what they may send."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from service.telemetry.trace import EXPOSED_HEADERS


class CrossOrigin:
    """The rules in the form of Starlette's middleware, and as headers for answers that do not pass through it.

    Cookies are not allowed, because nothing here reads them.

    Args:
        origins: which may read answers; ``*`` among them allows all.
    """

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = origins

    def middleware(self) -> dict[str, Any]:
        """Return the arguments of ``CORSMiddleware``."""
        return {
            "allow_origins": self._origins,
            "allow_methods": ["GET", "HEAD", "POST"],
            "allow_headers": ["authorization", "content-type", "x-q8bert-backend", "x-request-id"],
            "expose_headers": EXPOSED_HEADERS,
            "max_age": 600,
        }

    def headers(self, origin: str | None) -> dict[str, str]:
        """Return the headers that let a page of `origin` read an answer; `origin` is None if the request names none."""
        varies = {"vary": "Origin"}
        everyone = "*" in self._origins
        if origin is None or not (everyone or origin in self._origins):
            return varies
        return {
            "access-control-allow-origin": "*" if everyone else origin,
            "access-control-expose-headers": ", ".join(EXPOSED_HEADERS),
            **varies,
        }
