"""Positions where a text can be cut without changing the tokens on either side, for a given tokenizer."""

from __future__ import annotations

import json
import re
from typing import Any, cast

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordLevel, WordPiece

from q8core.once_per_tokenizer import once_per_tokenizer

WORD = re.compile(r"(?:(?<= )|\A)[0-9A-Za-z]")
"""The beginning of a word that becomes at least one token of its own, whatever surrounds it, if :func:`splits_at_words`
is true. The space before it belongs to it, since some tokenizers join the two."""

# these look at one character, or at neighbours without spaces: text on one side of " a" does not affect the other side
_LOCAL_NORMALIZERS = frozenset(
    ["BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Precompiled", "StripAccents"]
)
# these remove spaces: later steps see only words
_WITHOUT_SPACES = frozenset(["BertPreTokenizer", "Whitespace", "WhitespaceSplit"])


@once_per_tokenizer
def splits_at_words(tokenizer: Tokenizer) -> bool:
    """Return whether a text may be cut before a space with an ASCII letter or digit after it.

    Then each such word is at least one token, and no token crosses the cut. False means that this is not known.
    """
    steps = _steps(tokenizer.pre_tokenizer, "pretokenizers")
    if not steps or not _splits(steps):
        return False
    spaces_count = steps[0]["type"] not in _WITHOUT_SPACES
    return _keeps_every_word(tokenizer) and _normalizes_locally(tokenizer) and _adds_words_only(tokenizer, spaces_count)


def _steps(part: Any, of_sequence: str) -> list[dict[str, Any]]:
    """Return the parts of a normalizer or pre-tokenizer as in its file; sequences may be nested."""
    if part is None:
        return []
    return _flat(cast("dict[str, Any]", json.loads(part.__getstate__())), of_sequence)


def _flat(state: dict[str, Any], of_sequence: str) -> list[dict[str, Any]]:
    if state["type"] != "Sequence":
        return [state]
    return [step for inner in state[of_sequence] for step in _flat(inner, of_sequence)]


def _splits(steps: list[dict[str, Any]]) -> bool:
    """Whether the first step starts a piece at the space, or removes the space."""
    first = steps[0]
    if first["type"] in _WITHOUT_SPACES:
        return True
    if len(steps) > 1:  # further steps might need the space
        return False
    if first["type"] == "ByteLevel":
        return bool(first.get("use_regex", True))
    return first["type"] == "Metaspace" and bool(first.get("split", True))


def _normalizes_locally(tokenizer: Tokenizer) -> bool:
    return all(step["type"] in _LOCAL_NORMALIZERS for step in _steps(tokenizer.normalizer, "normalizers"))


def _keeps_every_word(tokenizer: Tokenizer) -> bool:
    """Whether the model makes at least one token from every piece."""
    model = tokenizer.model
    if isinstance(model, WordPiece | WordLevel | Unigram):
        return True  # an unknown piece becomes the unknown token
    if not isinstance(model, BPE):
        return False
    if model.unk_token is not None:
        return tokenizer.token_to_id(model.unk_token) is not None
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        return False
    by_bytes = any(step["type"] == "ByteLevel" for step in _steps(tokenizer.pre_tokenizer, "pretokenizers"))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return by_bytes and all(tokenizer.token_to_id(byte) is not None for byte in alphabet)


def _adds_words_only(tokenizer: Tokenizer, spaces_count: bool) -> bool:
    """Whether no added token crosses a space, or removes spaces that belong to a word."""
    normalizer = tokenizer.normalizer
    for token in tokenizer.get_added_tokens_decoder().values():
        texts = [token.content] if normalizer is None else [token.content, normalizer.normalize_str(token.content)]
        takes_spaces = token.rstrip or (token.lstrip and WORD.match(token.content))
        if any(re.search(r"\s", text) for text in texts) or (takes_spaces and spaces_count):
            return False
    return True
