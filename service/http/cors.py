"""Pages of other origins: what they may send and read."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from service.telemetry.trace import EXPOSED_HEADERS


class CrossOrigin:
    """The rules as Starlette's middleware takes them, and their headers for answers that never pass it.

    No cookies, because nothing here reads any.

    Args:
        origins: that may read answers; ``*`` among them for all.
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
        """Return the headers with which a page of `origin` may read an answer; None for a request that names none."""
        varies = {"vary": "Origin"}
        everyone = "*" in self._origins
        if origin is None or not (everyone or origin in self._origins):
            return varies
        return {
            "access-control-allow-origin": "*" if everyone else origin,
            "access-control-expose-headers": ", ".join(EXPOSED_HEADERS),
            **varies,
        }
