"""The table of errors, and the README's copy of it."""

from __future__ import annotations

import re
from pathlib import Path

from service.errors import ERROR_KINDS, HTTP_KINDS, ClientClosed

README = Path(__file__).resolve().parents[2] / "README.md"
ROW = re.compile(r"^\| (\d{3}) \| ((?:`\w+`(?:, )?)+) \|", re.MULTILINE)


def test_the_readme_lists_every_error_and_no_other() -> None:
    rows = ROW.findall(README.read_text(encoding="utf-8"))
    listed = [(int(status), error_type) for status, types in rows for error_type in re.findall(r"`(\w+)`", types)]
    # nobody is there to read the answer to a client that left
    kinds = [kind for error, kind in ERROR_KINDS.items() if error is not ClientClosed] + list(HTTP_KINDS.values())
    assert sorted(listed) == sorted({(kind.status, kind.error_type) for kind in kinds})
