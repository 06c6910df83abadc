"""Reads and checks the settings in the files beside ``tokenizer.json``, for :mod:`q8core.tokenizer`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken

from q8core.documents import parse_json
from q8core.errors import CheckpointError
from q8core.model.families import FAMILIES
from q8core.text_file import read_text
from q8core.tokenizer_classes import DEFAULT_CLASS, TokenizerClass, find_class, known_names

CONFIG_FILE = "tokenizer_config.json"
SPECIAL_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
EXTRA, ADDITIONAL, OWN = "extra_special_tokens", "additional_special_tokens", "model_specific_special_tokens"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class TokenizerSettings:
    """The files' settings, completed with transformers' defaults.

    Attributes:
        tokenizer_class: the name of transformers' class that reads the folder.
        rules: how that class makes a tokenizer.
        config: the unchanged content of tokenizer_config.json.
        named: special tokens by their key, such as cls_token.
        extra: more special tokens.
        added: tokens to add, by their ids in the file; None if tokenizer.json decides.
        old_added: tokens of added_tokens.json to add in that case.
    """

    tokenizer_class: str
    rules: TokenizerClass
    config: Mapping[str, Any]
    do_lower_case: bool
    strip_accents: bool | None
    tokenize_chinese_chars: bool
    add_prefix_space: bool
    trim_offsets: bool
    split_special_tokens: bool
    named: Mapping[str, str | AddedToken]
    extra: tuple[str | AddedToken, ...]
    added: Mapping[int, AddedToken] | None
    old_added: Mapping[int, AddedToken]


def read_json(file: Path) -> dict[str, Any]:
    """Read a file with one JSON object; a missing file counts as an empty object.

    Raises:
        CheckpointError: the file cannot be read, is not JSON, or is not an object.
    """
    if not file.is_file():
        return {}
    values: object = parse_json(read_text(file, CheckpointError), file, error=CheckpointError)
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} holds {_shown(values)}; a JSON object with the tokenizer's settings is needed")
    return cast(dict[str, Any], values)


def read_settings(folder: Path) -> TokenizerSettings:
    """Read the settings in a folder's files beside ``tokenizer.json``, as transformers' AutoTokenizer does.

    Raises:
        CheckpointError: a file cannot be read, a value has the wrong type, or a setting is not supported.
    """
    config = read_json(folder / CONFIG_FILE)
    values = _Values(folder / CONFIG_FILE, config)
    kind, rules = _class_of(values, folder)
    added = values.added_tokens()
    # the older files count only if the newer one has no list of added tokens
    older = read_json(folder / SPECIAL_FILE) if added is None else {}
    specials = _merged(_Values(folder / CONFIG_FILE, config), _Values(folder / SPECIAL_FILE, older))
    named, extra = _special_tokens(specials, rules)
    old = _old_added(folder, specials) if added is None else {}
    by_space = rules.model in ("BPE", "Unigram")  # the other classes ignore these two
    return TokenizerSettings(
        tokenizer_class=kind,
        rules=rules,
        config=config,
        do_lower_case=values.flag("do_lower_case", True),
        strip_accents=None if config.get("strip_accents") is None else values.flag("strip_accents", True),
        tokenize_chinese_chars=values.flag("tokenize_chinese_chars", True),
        add_prefix_space=values.flag("add_prefix_space", rules.add_prefix_space) if by_space else False,
        trim_offsets=values.flag("trim_offsets", True) if by_space else True,
        split_special_tokens=values.flag("split_special_tokens", False),
        named=named,
        extra=extra,
        added=added,
        old_added=old,
    )


def _class_of(values: _Values, folder: Path) -> tuple[str, TokenizerClass]:
    """Return transformers' class for a folder: the one that its files name, else that of its kind of model."""
    model = _Values(folder / "config.json", read_json(folder / "config.json"))
    named = values.name("tokenizer_class") or model.name("tokenizer_class")
    if named is not None:
        rules = find_class(named)
        if rules is None:
            raise CheckpointError(
                f"{folder}: tokenizer_class is {named!r}; q8bert reads {', '.join(known_names())} (the last one with "
                "all settings in tokenizer.json)"
            )
        return named, rules
    kind = model.name("model_type")
    name = DEFAULT_CLASS if kind is None else FAMILIES[kind].tokenizer if kind in FAMILIES else None
    if name is None or (rules := find_class(name)) is None:
        raise CheckpointError(
            f"{folder}: {CONFIG_FILE} has no tokenizer_class, and model_type in config.json is {kind!r}; without the "
            f"former, the latter must be one of {', '.join(FAMILIES)}"
        )
    return name, rules


def _merged(config: _Values, older: _Values) -> _Values:
    """Return the settings of special tokens under transformers' names; special_tokens_map.json wins over the config.

    Named tokens of a particular model become ``model_specific_special_tokens``, unnamed ones the list
    ``extra_special_tokens``, or ``additional_special_tokens`` if only the older file has them.
    """
    for key in (listed := config.part(ADDITIONAL)).all:
        listed.token(key)  # so that an error has the name in the file
    values = dict(config.all)
    own = {
        key: values.pop(key)
        for key in config.all
        if key.endswith("_token") and key not in _NAMED and isinstance(config.all[key], str)
    }
    if not values.get(EXTRA) and ADDITIONAL in values:
        values[EXTRA] = values.pop(ADDITIONAL)
    if isinstance(values.get(EXTRA), dict):
        own |= values.pop(EXTRA)
    for key, value in older.all.items():
        if key == EXTRA and isinstance(value, list):
            before, listed = values.get(EXTRA) or [], older.part(EXTRA)
            values[key] = [*before, *(listed.untyped(place) for place in listed.all if listed.all[place] not in before)]
        else:
            values[key] = older.untyped(key) if isinstance(value, dict) and key != EXTRA else value
    if isinstance(values.get(EXTRA), dict):
        own |= values.pop(EXTRA)
    file = Path(f"{config.file}, with {SPECIAL_FILE} over it,") if older.all else config.file
    return _Values(file, values | {OWN: own} if own else values)


def _special_tokens(
    values: _Values, rules: TokenizerClass
) -> tuple[dict[str, str | AddedToken], tuple[str | AddedToken, ...]]:
    """Return named special tokens, in transformers' order, and the others."""
    named: dict[str, str | AddedToken] = {}
    for key in _NAMED:
        token = values.token(key) if key in values.all else rules.special_tokens.get(key)
        if token is None:
            if key in values.all and (key == "unk_token" or key in (rules.around or ())):
                raise values.wrong(key, "the vocabulary's token for that is needed")
            continue
        if isinstance(token, str) and key in rules.flags:
            token = AddedToken(token, special=True, **rules.flags[key])
        named[key] = token
    for key, value in values.all.items():  # tokens of a particular model, such as image_token
        if key.endswith("_token") and key not in _NAMED and isinstance(value, str | dict):
            named[key] = values.token(key) or ""
    for key in (own := values.part(OWN)).all:
        named[key] = own.token(key) or ""
    listed = values.part(EXTRA if EXTRA in values.all else ADDITIONAL)
    if EXTRA not in values.all and values.all.get(ADDITIONAL) is None:
        return named, rules.extra
    return named, tuple(token for key in listed.all if (token := listed.token(key)) is not None)


def _old_added(folder: Path, specials: _Values) -> dict[int, AddedToken]:
    """Return the added tokens of the oldest layout, which has them with their ids in added_tokens.json."""
    # transformers checks this before it reads the config's objects as tokens
    known = [*(specials.all.get(key) for key in _NAMED), *specials.part(EXTRA).all.values()]
    special = {str(token) for token in known if isinstance(token, str | AddedToken)}
    found: dict[int, AddedToken] = {}
    values = _Values(folder / ADDED_FILE, read_json(folder / ADDED_FILE))
    for token, index in values.all.items():
        if type(index) is not int:
            raise values.wrong(token, "a token's id is needed")
        found[index] = AddedToken(token, normalized=token not in special, special=token in special)
    return found


@dataclass(frozen=True)
class _Values:
    """The values of one file; reading one with another type raises an error."""

    file: Path
    all: Mapping[str, Any]
    prefix: str = ""

    def wrong(self, key: str, needed: str) -> CheckpointError:
        """Return an error with the value and what it should be."""
        return CheckpointError(f"{self.file}: {self.prefix}{key} is {_shown(self.all.get(key))}; {needed}")

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean."""
        value = self.all.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false is needed")
        return value

    def name(self, key: str) -> str | None:
        """Return a string, or None if it is null or missing."""
        value = self.all.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, "a name is needed")
        return value

    def part(self, key: str) -> _Values:
        """Return the values of a list by index, or of an object; empty if it is null or missing."""
        value = self.all.get(key)
        if value is None:
            return _Values(self.file, {}, f"{key}.")
        if not isinstance(value, list | dict):
            raise self.wrong(key, "a list of tokens is needed")
        items = value if isinstance(value, dict) else {str(i): v for i, v in enumerate(cast(list[object], value))}
        return _Values(self.file, cast(dict[str, Any], items), f"{key}.")

    def token(self, key: str, *, typed: bool = True) -> str | AddedToken | None:
        """Return a token, with its flags if the file has them; ``typed``: an object must declare that it is a token."""
        value = self.all.get(key)
        if value is None or isinstance(value, str | AddedToken):
            return value
        content = cast(dict[str, Any], value).get("content") if isinstance(value, dict) else None
        if not isinstance(content, str) or (typed and value.get("__type") != "AddedToken"):
            raise self.wrong(key, "a token is needed")
        flags = {name: value[name] for name in _FLAGS if name in value}
        if not all(isinstance(flag, bool) for flag in flags.values()):
            raise self.wrong(key, "its flags must be true or false")
        return AddedToken(content, **flags)

    def untyped(self, key: str) -> str | AddedToken | None:
        """Return a special token of special_tokens_map.json, where objects do not declare that they are tokens."""
        token = self.token(key, typed=False)
        if isinstance(token, AddedToken):
            token.special = True
        return token

    def added_tokens(self) -> dict[int, AddedToken] | None:
        """Return the newer layout's added tokens by id; None if the file has no such list."""
        key = "added_tokens_decoder"
        if key not in self.all:
            return None
        if not isinstance(self.all[key], dict):
            raise self.wrong(key, "an object with a token for each id is needed")
        listed = _Values(self.file, cast(dict[str, Any], self.all[key]), f"{key}.")
        found: dict[int, AddedToken] = {}
        for index in listed.all:
            token = listed.token(index, typed=False)
            if not index.isdecimal() or not isinstance(token, AddedToken):
                raise listed.wrong(index, "a token with its flags under its id is needed")
            found[int(index)] = token
        return found


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
