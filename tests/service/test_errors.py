"""The table of errors, and its copy in service/README.md."""

from __future__ import annotations

import re
from pathlib import Path

from fastapi.exceptions import RequestValidationError

from service.errors import ERROR_KINDS, HTTP_KINDS, MOST_DETAILS, ClientClosed, describe_error

README = Path(__file__).resolve().parents[2] / "service" / "README.md"
ROW = re.compile(r"^\| (\d{3}) \| ((?:`\w+`(?:, )?)+) \|", re.MULTILINE)


def test_the_readme_lists_every_error_and_no_other() -> None:
    rows = ROW.findall(README.read_text(encoding="utf-8"))
    listed = [(int(status), error_type) for status, types in rows for error_type in re.findall(r"`(\w+)`", types)]
    # nobody is there to read the answer to a client that left
    kinds = [kind for error, kind in ERROR_KINDS.items() if error is not ClientClosed] + list(HTTP_KINDS.values())
    assert sorted(listed) == sorted({(kind.status, kind.error_type) for kind in kinds})


def test_details_have_an_end() -> None:
    problems = [{"type": "t", "loc": ("body", "inputs", place), "msg": "wrong"} for place in range(MOST_DETAILS + 5)]
    answer = describe_error(RequestValidationError(problems))
    assert [problem["field"] for problem in answer.details] == [f"inputs[{place}]" for place in range(MOST_DETAILS)]
    assert answer.message.endswith(f"inputs[2]: wrong; and {MOST_DETAILS + 2} more")
