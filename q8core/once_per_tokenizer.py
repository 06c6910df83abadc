"""Facts derived from a tokenizer and kept with it, for as long as it lives: models come and go while serving."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar, cast

from tokenizers import Tokenizer

T = TypeVar("T")


def once_per_tokenizer(derive: Callable[[Tokenizer], T]) -> Callable[[Tokenizer], T]:
    """Derive a fact of a tokenizer at the first call only; one that is changed afterwards keeps its old fact."""
    key = f"{derive.__module__}.{derive.__qualname__}"

    @wraps(derive)
    def kept(tokenizer: Tokenizer) -> T:
        facts = vars(tokenizer)
        if key not in facts:
            facts[key] = derive(tokenizer)
        return cast(T, facts[key])

    return kept
