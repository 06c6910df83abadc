"""Makes the same tokenizer from ``tokenizer.json`` and its settings as transformers; reports where the files differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE, WordPiece

from q8core.tokenizer_build import build_tokenizer, put_special_tokens_around
from q8core.tokenizer_config import ADDITIONAL, CONFIG_FILE, EXTRA, OWN, TokenizerSettings

_ADDED = "the added token"  # prefix of the name of each added token

# a BertNormalizer's settings -> the config's names
_NORMALIZER_KEYS = {
    "lowercase": "do_lower_case",
    "strip_accents": "strip_accents",
    "handle_chinese_chars": "tokenize_chinese_chars",
}
_PRE_TOKENIZER_KEYS = ("add_prefix_space", "use_regex", "replacement", "prepend_scheme", "split")
_WORD_PIECE_KEYS = ("unk_token", "continuing_subword_prefix", "max_input_chars_per_word")
_BPE_KEYS = (
    "unk_token", "dropout", "fuse_unk", "byte_fallback", "ignore_merges", "continuing_subword_prefix",
    "end_of_word_suffix",
)  # fmt: skip
# names of settings in the parts of a tokenizer -> the config's names
_CONFIG_NAMES = {**_NORMALIZER_KEYS, "add_prefix_space": "add_prefix_space", "prepend_scheme": "add_prefix_space"}


def apply_settings(tokenizer: Tokenizer, settings: TokenizerSettings, file: Path) -> tuple[Tokenizer, list[str]]:
    """Return the tokenizer that AutoTokenizer makes of a folder, and a sentence for each disagreement of the files.

    BertTokenizer and those of other families take only the vocabulary and the added tokens from ``tokenizer.json``;
    generic classes take all of it, and add their special tokens.

    Raises:
        CheckpointError: the file's model is not of the class's kind, or puts no special tokens around a text.
    """
    before = _facts(tokenizer)
    builds = settings.rules.model is not None
    made = build_tokenizer(tokenizer, settings, file) if builds else tokenizer
    made.encode_special_tokens = settings.split_special_tokens
    _add_tokens(made, settings, tokenizer.get_added_tokens_decoder())
    put_special_tokens_around(made, settings, file)
    ignored = [] if builds else _ignored(before, settings)
    return made, [*ignored, *_differences(before, _facts(made), settings)]


def agreeing_config(tokenizer: Tokenizer, settings: TokenizerSettings) -> dict[str, Any]:
    """Return the content of a ``tokenizer_config.json`` that describes this tokenizer."""
    config = dict(settings.config)
    normalizer = _state(tokenizer.normalizer)
    if normalizer["type"] == "BertNormalizer":
        config |= {name: normalizer[key] for key, name in _NORMALIZER_KEYS.items()}
    by_space = [
        step["add_prefix_space"] for step in _steps(_state(tokenizer.pre_tokenizer)) if step["type"] == "ByteLevel"
    ]
    if by_space and "add_prefix_space" in config:
        config["add_prefix_space"] = by_space[0]
    config.pop(ADDITIONAL, None)
    config[EXTRA] = [str(token) for token in settings.extra]
    added = sorted(tokenizer.get_added_tokens_decoder().items())
    config["added_tokens_decoder"] = {str(index): _flags(token) for index, token in added}
    # reading this list makes named tokens special, so only tokens that are special already keep their names
    special = {token.content for _, token in added if token.special}
    config = {key: value for key, value in config.items() if key not in settings.named}
    named = {key: str(token) for key, token in settings.named.items() if str(token) in special}
    config |= {key: token for key, token in named.items() if key.endswith("_token")}
    config.pop(OWN, None)
    own = {key: token for key, token in named.items() if key not in config}
    config |= {OWN: own} if own else {}
    return config


def _add_tokens(tokenizer: Tokenizer, settings: TokenizerSettings, own: Mapping[int, AddedToken]) -> None:
    """Add the tokens that transformers adds, in its order: the listed ones by id, then other special tokens.

    A token gets its id from the vocabulary, or the next free one: the list's ids only decide the order.
    """
    listed = settings.added if settings.added is not None else {**settings.old_added, **own}
    named = {str(token) for token in settings.named.values()}
    pending: list[str | AddedToken] = [token for _, token in sorted(listed.items())]
    known = {str(token) for token in pending}
    if settings.rules.model is None:
        known |= {str(token) for token in own.values()}
    for token in (*settings.named.values(), *settings.extra):
        if str(token) not in known and token not in pending:  # a token with other flags is added, and wins
            pending.append(token)
    tokens = [AddedToken(token, special=True) if isinstance(token, str) else token for token in pending]
    for token in tokens:
        if str(token) in named:
            token.special = True
    tokenizer.add_tokens(tokens)


def _facts(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the settings besides the vocabulary that decide a text's ids, by their names in ``tokenizer.json``."""
    normalizer, steps, model = _state(tokenizer.normalizer), _steps(_state(tokenizer.pre_tokenizer)), tokenizer.model
    facts: dict[str, Any] = {
        "normalizer": normalizer["type"],
        "pre_tokenizer": ", ".join(step["type"] for step in steps) if steps else None,
    }
    if normalizer["type"] == "BertNormalizer":
        facts |= {key: normalizer[key] for key in ("clean_text", *_NORMALIZER_KEYS)}
        if facts["strip_accents"] is None:  # as in the original BERT
            facts["strip_accents"] = facts["lowercase"]
    for step in steps:
        facts |= {key: value for key, value in step.items() if key in _PRE_TOKENIZER_KEYS}
    if isinstance(model, WordPiece):
        facts |= {key: getattr(model, key) for key in _WORD_PIECE_KEYS}
    elif isinstance(model, BPE):
        facts |= {key: getattr(model, key) or None for key in _BPE_KEYS}
    return facts | {
        f"{_ADDED} {token.content!r}": _flags(token) | {"id": index}
        for index, token in tokenizer.get_added_tokens_decoder().items()
    }


def _steps(state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return a pre-tokenizer's steps in order."""
    if state["type"] == "Sequence":
        return [step for inner in state["pretokenizers"] for step in _steps(inner)]
    return [] if state["type"] is None else [state]


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], settings: TokenizerSettings) -> list[str]:
    """Return a sentence for each setting that would differ with tokenizer.json alone."""
    found: list[str] = []
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        if key.startswith(_ADDED):
            found.append(_token_difference(key, old, new, settings))
        elif key in before and key in after:
            found.append(f"tokenizer.json has {key}={_text(old)}; {_winner(key, settings)} {_text(new)} wins")
    return found


def _token_difference(
    key: str, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None, settings: TokenizerSettings
) -> str:
    winner = f"the files beside it and {settings.tokenizer_class}'s defaults"
    if old is None or new is None:
        without, with_it = ("does not have", "have it") if old is None else ("has", "leave it out")
        return f"tokenizer.json {without} {key}; {winner} {with_it}, and win"
    flags = [flag for flag in new if new[flag] != old[flag]]
    was, now = (", ".join(f"{flag}={_text(token[flag])}" for flag in flags) for token in (old, new))
    return f"tokenizer.json has {key} with {was}; {winner} have {now}, and win"


def _winner(key: str, settings: TokenizerSettings) -> str:
    """Return the source of the value in use."""
    name = _CONFIG_NAMES.get(key, key)
    if name in settings.config:
        return f"{CONFIG_FILE}'s {name}"
    if key in _CONFIG_NAMES:
        return f"{CONFIG_FILE} has no {name}, and {settings.tokenizer_class}'s default"
    return f"{settings.tokenizer_class}'s own"


def _ignored(facts: Mapping[str, Any], settings: TokenizerSettings) -> list[str]:
    """Return a sentence for each setting of the config that its tokenizer class does not read."""
    asked = {"lowercase": settings.do_lower_case, "handle_chinese_chars": settings.tokenize_chinese_chars}
    if settings.strip_accents is not None:
        asked["strip_accents"] = settings.strip_accents
    if isinstance(settings.config.get("add_prefix_space"), bool):
        asked["add_prefix_space"] = settings.config["add_prefix_space"]
    return [
        f"{CONFIG_FILE} has {name}={_text(asked[key])}; tokenizer.json's {key} {_text(facts[key])} wins, since "
        f"{settings.tokenizer_class} goes by it"
        for key, name in _CONFIG_NAMES.items()
        if key in facts and key in asked and name in settings.config and asked[key] != facts[key]
    ]


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _flags(token: AddedToken) -> dict[str, Any]:
    return {key: getattr(token, key) for key in ("content", "single_word", "lstrip", "rstrip", "normalized", "special")}


def _state(part: Any) -> dict[str, Any]:
    """Return a part of a tokenizer as in its file."""
    return {"type": None} if part is None else cast(dict[str, Any], json.loads(part.__getstate__()))
