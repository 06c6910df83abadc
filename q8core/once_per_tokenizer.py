"""Caches facts derived from a tokenizer for its lifetime, since models are loaded and unloaded while serving."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar, cast

from tokenizers import Tokenizer

T = TypeVar("T")


def once_per_tokenizer(derive: Callable[[Tokenizer], T]) -> Callable[[Tokenizer], T]:
    """Compute a fact about a tokenizer only once; changing the tokenizer afterwards does not update it."""
    key = f"{derive.__module__}.{derive.__qualname__}"

    @wraps(derive)
    def kept(tokenizer: Tokenizer) -> T:
        facts = vars(tokenizer)
        if key not in facts:
            facts[key] = derive(tokenizer)
        return cast(T, facts[key])

    return kept
