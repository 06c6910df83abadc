"""Paths in the form of the routes, for code that compares paths outside of the router."""

from __future__ import annotations


def without_slash(path: str) -> str:
    """Return the path without one trailing slash, which clients and proxies add.

    Such requests are not redirected, because many clients drop the body when they follow a redirect.
    """
    return path[:-1] if path.endswith("/") and not path.endswith("//") and path != "/" else path
