"""GET /: the page that compares both backends in a browser; its files are under /page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import anyio
from fastapi import APIRouter, Header, Response
from fastapi.responses import FileResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parents[2] / "page"
INDEX = "index.html"
ASSETS_PATH = "/page"

# The page loads nothing from other hosts, runs no inline script, submits no forms and may not be framed.
_POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    # revalidated each time (cheap because of the ETag), so that a new version's page never runs an old one's scripts
    "cache-control": "no-cache",
}

router = APIRouter(include_in_schema=False)


class PageFiles(StaticFiles):
    """Serves the page's files with the page's headers."""

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Answer with a file, or 304 if the client has it."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(_HEADERS)
        return response


async def check_files() -> None:
    """Read the page once before the first request: at first use anyio imports modules to read files and use threads.

    Raises:
        OSError: the page cannot be read.
    """
    await anyio.Path(FOLDER / INDEX).read_bytes()


@router.api_route("/", methods=["GET", "HEAD"])
def page(accept: Annotated[str, Header()] = "") -> Response:
    """Answer with the page; redirect a client that accepts JSON and no HTML to /info."""
    if "application/json" in accept and "text/html" not in accept:
        return RedirectResponse("info", headers={"vary": "accept"})
    return FileResponse(FOLDER / INDEX, headers={**_HEADERS, "vary": "accept"})


@router.api_route("/favicon.ico", methods=["GET", "HEAD"])
def favicon() -> Response:
    """Redirect browsers that show other answers (/info, /metrics) to the page's icon."""
    return RedirectResponse("page/icon.svg")
