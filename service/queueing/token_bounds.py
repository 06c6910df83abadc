"""How few tokens a text can have, without tokenizing it: what the queue has no room for is refused before the work."""

from __future__ import annotations

from tokenizers import Tokenizer

from q8core.words import WORD, splits_at_words

_PIECE = 1 << 16


def most_proven(characters: int) -> int:
    """The largest number that `least_tokens` can return for this many characters."""
    return (characters + 1) // 2


def least_tokens(tokenizer: Tokenizer, text: str, enough: int) -> int:
    """Count words that become at least a token each, special tokens not included.

    Args:
        tokenizer: that of the model.
        text: any text.
        enough: where the count may stop, because more would change nothing.

    Returns:
        A number that the text's tokens are not below; 0 where nothing is known of the tokenizer.
    """
    if not splits_at_words(tokenizer):
        return 0
    found = 0
    for begin in range(0, len(text), _PIECE):
        found += len(WORD.findall(text, begin, begin + _PIECE))
        if found >= enough:
            break
    return found
