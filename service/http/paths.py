"""Paths as the routes know them, for what compares paths before or beside the router."""

from __future__ import annotations


def without_slash(path: str) -> str:
    """Return the path of the same route without the one slash that clients and proxies add to its end.

    Nobody is redirected: many clients drop the body on the way.
    """
    return path[:-1] if path.endswith("/") and not path.endswith("//") and path != "/" else path
