"""One text or a list of texts, as in the request bodies of other servers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from service.errors import UNION_MARK
from service.tasks.strict import Text

Texts = Annotated[
    Annotated[Text, Tag(f"{UNION_MARK}text")] | Annotated[list[Text], Field(fail_fast=True), Tag(f"{UNION_MARK}list")],
    Discriminator(
        lambda value: {str: f"{UNION_MARK}text", list: f"{UNION_MARK}list"}.get(type(value)),
        custom_error_type="inputs_type",
        custom_error_message="a text or a list of texts is expected",
    ),
]


def listed(texts: str | list[str]) -> list[str]:
    """Return the texts as a list."""
    return [texts] if isinstance(texts, str) else texts
