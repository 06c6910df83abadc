"""Which requests need a key, and whether they show one."""

from __future__ import annotations

import re

from starlette.types import Scope

from service.errors import Unauthorized
from service.operations.keys import KeyRing, Keys

ADMIN_PATH = "/admin"

# All other paths need a key, so that a new route cannot be left open by mistake.
_OPEN_PATHS = frozenset(
    {
        # probes have no keys, and their answers reveal nothing
        *("/livez", "/readyz", "/health", "/v2/health/live", "/v2/health/ready"),
        # the page and the documentation are static; the data routes that they call need the key
        *("/", "/favicon.ico", "/docs", "/docs/oauth2-redirect", "/openapi.json"),
    }
)
_OPEN_FOLDERS = ("/page/", "/static-offline-docs/")
_METRICS_PATH = "/metrics"

_BEARER = re.compile(rb"bearer +(\S+) *", re.IGNORECASE)


class KeyCheck:
    """Requires ``Authorization: Bearer KEY``.

    Args:
        keys: the valid keys.
        protect_metrics: whether /metrics needs an API key, too.
    """

    def __init__(self, keys: Keys, *, protect_metrics: bool) -> None:
        self._keys = keys
        self._open = _OPEN_PATHS if protect_metrics else _OPEN_PATHS | {_METRICS_PATH}

    def check(self, scope: Scope) -> None:
        """Check a request, whose body need not have been read.

        Raises:
            Unauthorized: it shows no key, or none that is valid for its path.
        """
        ring = self._needed(scope["path"])
        if ring is None:
            return
        shown = _shown_key(scope)
        if shown is None or not ring.accepts(shown):
            what = "no key is shown" if shown is None else "the key is not valid here"
            raise Unauthorized(f"{what}; send the header Authorization: Bearer KEY")

    def _needed(self, path: str) -> KeyRing | None:
        """Return the keys of which a request for this path must have one, None if it needs none."""
        if self._keys.admin and (path == ADMIN_PATH or path.startswith(f"{ADMIN_PATH}/")):
            return self._keys.admin
        if not self._keys.api or path in self._open or path.startswith(_OPEN_FOLDERS):
            return None
        return self._keys.api


def _shown_key(scope: Scope) -> bytes | None:
    """Return the key of the Authorization header; None if there is none, are several, or another scheme."""
    found = [value for name, value in scope["headers"] if name == b"authorization"]
    match = _BEARER.fullmatch(found[0]) if len(found) == 1 else None
    return match[1] if match else None
