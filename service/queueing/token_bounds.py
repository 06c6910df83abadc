"""Lower bounds on a text's tokens without tokenizing it, to refuse early what the queue has no room for."""

from __future__ import annotations

from tokenizers import Tokenizer

from q8core.words import WORD, splits_at_words

_PIECE = 1 << 16


def most_proven(characters: int) -> int:
    """Return the largest number that `least_tokens` can return for this many characters."""
    return (characters + 1) // 2


def least_tokens(tokenizer: Tokenizer, text: str, enough: int) -> int:
    """Count words that become at least one token each, special tokens not included.

    Args:
        tokenizer: the model's.
        text: any text.
        enough: the count may stop here, because more would change nothing.

    Returns:
        A lower bound on the text's tokens; 0 if nothing is known about the tokenizer.
    """
    if not splits_at_words(tokenizer):
        return 0
    found = 0
    for begin in range(0, len(text), _PIECE):
        found += len(WORD.findall(text, begin, begin + _PIECE))
        if found >= enough:
            break
    return found
