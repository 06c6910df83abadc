"""Makes the tokenizer that transformers makes of ``tokenizer.json`` and the settings beside it; says what differs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken, Encoding, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from q8core.errors import CheckpointError
from q8core.tokenizer_config import ADDITIONAL, CONFIG_FILE, EXTRA, OWN, TokenizerSettings

_ADDED = "the added token"  # begins the name of each of them
_PREFIX, _LONGEST_WORD = "##", 100  # what transformers' BertTokenizer always takes

# a BertNormalizer's settings, and the config's names for them
_NORMALIZER_KEYS = {
    "lowercase": "do_lower_case",
    "strip_accents": "strip_accents",
    "handle_chinese_chars": "tokenize_chinese_chars",
}


def apply_settings(tokenizer: Tokenizer, settings: TokenizerSettings, file: Path) -> tuple[Tokenizer, list[str]]:
    """Return the tokenizer that AutoTokenizer makes of a folder, and a sentence for each setting on which files differ.

    BertTokenizer takes nothing but the vocabulary and the added tokens from ``tokenizer.json``; other classes take
    all of it, and add their special tokens.

    Raises:
        CheckpointError: the file's model is not WordPiece, or it puts no [CLS] and [SEP] around a text.
    """
    before = _facts(tokenizer)
    made = _bert_tokenizer(tokenizer, settings, file) if settings.from_config else tokenizer
    made.encode_special_tokens = settings.split_special_tokens
    _add_tokens(made, settings, tokenizer.get_added_tokens_decoder())
    if settings.from_config:
        _put_special_tokens_around(made)
        return made, _differences(before, _facts(made), settings)
    _check_special_tokens_around(made, settings, file)
    return made, [*_ignored(before, settings), *_differences(before, _facts(made), settings)]


def agreeing_config(tokenizer: Tokenizer, settings: TokenizerSettings) -> dict[str, Any]:
    """Return ``tokenizer_config.json``'s content that says what this tokenizer does."""
    config = dict(settings.config)
    normalizer = _state(tokenizer.normalizer)
    if normalizer["type"] == "BertNormalizer":
        config |= {name: normalizer[key] for key, name in _NORMALIZER_KEYS.items()}
    config.pop(ADDITIONAL, None)
    config[EXTRA] = [str(token) for token in settings.extra]
    added = sorted(tokenizer.get_added_tokens_decoder().items())
    config["added_tokens_decoder"] = {str(index): _flags(token) for index, token in added}
    # a token that has a name becomes special where it is read from this list: a name stays where it is special already
    special = {token.content for _, token in added if token.special}
    config = {key: value for key, value in config.items() if key not in settings.named}
    named = {key: str(token) for key, token in settings.named.items() if str(token) in special}
    config |= {key: token for key, token in named.items() if key.endswith("_token")}
    config.pop(OWN, None)
    own = {key: token for key, token in named.items() if key not in config}
    config |= {OWN: own} if own else {}
    return config


def _bert_tokenizer(tokenizer: Tokenizer, settings: TokenizerSettings, file: Path) -> Tokenizer:
    model = tokenizer.model
    if not isinstance(model, WordPiece):
        raise CheckpointError(
            f"{file}: the model is {type(model).__name__}; {settings.tokenizer_class} needs a WordPiece vocabulary"
        )
    unknown = str(settings.named["unk_token"])
    if (model.unk_token, model.continuing_subword_prefix, model.max_input_chars_per_word) != (
        unknown, _PREFIX, _LONGEST_WORD,
    ):  # fmt: skip
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        model = WordPiece(
            vocabulary, unk_token=unknown, continuing_subword_prefix=_PREFIX, max_input_chars_per_word=_LONGEST_WORD
        )
    made = Tokenizer(model)
    made.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.tokenize_chinese_chars,
        strip_accents=settings.strip_accents,
        lowercase=settings.do_lower_case,
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = tokenizer.decoder
    if tokenizer.truncation is not None:
        made.enable_truncation(**tokenizer.truncation)
    if tokenizer.padding is not None:
        made.enable_padding(**tokenizer.padding)
    return made


def _add_tokens(tokenizer: Tokenizer, settings: TokenizerSettings, own: Mapping[int, AddedToken]) -> None:
    """Add what transformers adds, in its order: the listed tokens by id, then the special tokens that are not listed.

    A token gets its id from the vocabulary, or the next one: the list's ids only order it.
    """
    listed = settings.added if settings.added is not None else {**settings.old_added, **own}
    named = {str(token) for token in settings.named.values()}
    tokens = [token for _, token in sorted(listed.items())]
    known = {str(token) for token in tokens}
    if not settings.from_config:
        known |= {str(token) for token in own.values()}
    for token in (*settings.named.values(), *settings.extra):
        if str(token) not in known:
            known.add(str(token))
            tokens.append(AddedToken(token, special=True) if isinstance(token, str) else token)
    for token in tokens:
        if str(token) in named:
            token.special = True
    tokenizer.add_tokens(tokens)


def _put_special_tokens_around(tokenizer: Tokenizer) -> None:
    ids = [(token, index) for token in ("[CLS]", "[SEP]") if (index := tokenizer.token_to_id(token)) is not None]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=ids
    )


def _check_special_tokens_around(tokenizer: Tokenizer, settings: TokenizerSettings, file: Path) -> None:
    """Refuse a file with another idea of a sequence than ``[CLS] text [SEP]``, which is what models are given here."""
    needed = [tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")]
    found = tokenizer.post_process(Encoding()).ids
    if None not in needed and [index for index in found if index in needed] != needed:
        raise CheckpointError(
            f"{file}: its post_processor does not put [CLS] and [SEP] around a text, and {settings.tokenizer_class} "
            "goes by the file; save it with transformers' BertTokenizer, or name that as tokenizer_class in "
            f"{CONFIG_FILE}"
        )


def _facts(tokenizer: Tokenizer) -> dict[str, Any]:
    """What decides the ids of a text, beside the vocabulary, under the names of ``tokenizer.json``."""
    normalizer, pre_tokenizer, model = (
        _state(tokenizer.normalizer), _state(tokenizer.pre_tokenizer), tokenizer.model,
    )  # fmt: skip
    facts: dict[str, Any] = {"normalizer": normalizer["type"], "pre_tokenizer": pre_tokenizer["type"]}
    if normalizer["type"] == "BertNormalizer":
        facts |= {key: normalizer[key] for key in ("clean_text", *_NORMALIZER_KEYS)}
        if facts["strip_accents"] is None:  # as in the original BERT
            facts["strip_accents"] = facts["lowercase"]
    if isinstance(model, WordPiece):
        facts |= {
            "unk_token": model.unk_token,
            "continuing_subword_prefix": model.continuing_subword_prefix,
            "max_input_chars_per_word": model.max_input_chars_per_word,
        }
    return facts | {
        f"{_ADDED} {token.content!r}": _flags(token) | {"id": index}
        for index, token in tokenizer.get_added_tokens_decoder().items()
    }


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], settings: TokenizerSettings) -> list[str]:
    """A sentence for each fact that tokenizer.json alone would have made otherwise."""
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
    """Where the value comes from that is taken."""
    name = _NORMALIZER_KEYS.get(key, key)
    if name in settings.config:
        return f"{CONFIG_FILE}'s {name}"
    if key in _NORMALIZER_KEYS:
        return f"{CONFIG_FILE} has no {name}, and {settings.tokenizer_class}'s default"
    return f"{settings.tokenizer_class}'s own"


def _ignored(facts: Mapping[str, Any], settings: TokenizerSettings) -> list[str]:
    """A sentence for each setting of the config that its class of tokenizer does not read."""
    asked = {"lowercase": settings.do_lower_case, "handle_chinese_chars": settings.tokenize_chinese_chars}
    if settings.strip_accents is not None:
        asked["strip_accents"] = settings.strip_accents
    return [
        f"{CONFIG_FILE} has {name}={_text(asked[key])}; tokenizer.json's {key} {_text(facts[key])} wins, since "
        f"{settings.tokenizer_class} goes by it"
        for key, name in _NORMALIZER_KEYS.items()
        if key in facts and key in asked and name in settings.config and asked[key] != facts[key]
    ]


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _flags(token: AddedToken) -> dict[str, Any]:
    return {key: getattr(token, key) for key in ("content", "single_word", "lstrip", "rstrip", "normalized", "special")}


def _state(part: Any) -> dict[str, Any]:
    """A part of a tokenizer as its file has it."""
    return {"type": None} if part is None else cast(dict[str, Any], json.loads(part.__getstate__()))
