"""Strict parsing of users' JSON and TOML: anything that two parsers could read differently is refused."""

from __future__ import annotations

import json
import math
import re
import reprlib
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from types import EllipsisType, NoneType
from typing import Any, TypedDict, TypeVar, cast, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from q8core.errors import InputError, Q8Error
from q8core.text_file import lines_of, read_text, text_problem

Kind = TypeVar("Kind")

Place = Sequence[str | int]
"""Keys and indices from the root of a document to a value."""

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_ALLOWED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "dataclass_type": "an object",
    "literal_error": "{expected}",
    "greater_than_equal": "at least {ge:g}",
}
"""By pydantic's type of a problem; with fields of its context."""
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_LITERALS = {None: "null", True: "true", False: "false"}
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxlong = _repr.maxother = 80
_repr.maxlevel = 3


class Hooks(TypedDict, total=False):
    """The hooks of `json.loads`, by its argument names."""

    object_pairs_hook: Callable[[list[tuple[str, Any]]], Any]
    parse_constant: Callable[[str], Any]
    parse_float: Callable[[str], Any]


class _Refused(ValueError):
    """Raised while parsing JSON for valid syntax that two parsers could read differently."""


def parse_json(
    text: str, path: Path, line: int | None = None, error: type[Q8Error] = InputError, hooks: Hooks | None = None
) -> Any:
    """Parse JSON.

    Args:
        text: the whole text of a file, or a part of it.
        path: the file's path.
        line: where the part begins; None for a whole file.
        error: the error class to raise.
        hooks: functions that `json.loads` calls for objects and numbers.

    Raises:
        Q8Error: the given one, with the file and, where it is known, the line.
    """
    where = f"{path}, line {line}" if line else f"{path}"
    try:
        return json.loads(text, **(hooks or {}))
    except json.JSONDecodeError as problem:
        place = f"{path}, line {(line or 1) + problem.lineno - 1}"
        raise error(f"{place}: not valid JSON: {problem.msg}") from problem
    except RecursionError as problem:
        raise error(f"{where}: nested too deeply") from problem
    except _Refused as problem:
        raise error(f"{where}: {problem}") from problem
    except ValueError as problem:  # Python's bound, whose words are for programmers
        raise error(f"{where}: a number has too many digits") from problem


def parse_strict_json(text: str, path: Path, error: type[Q8Error] = InputError) -> Any:
    """Parse a whole file of JSON in which no object has a key twice, and no number is NaN or infinite.

    Raises:
        Q8Error: the given one, with the file and, where it is known, the line.
    """
    if not text.strip():
        raise error(f"{path} is empty")
    hooks: Hooks = {"object_pairs_hook": _once, "parse_constant": _no_constant, "parse_float": _finite}
    return parse_json(text, path, None, error, hooks)


def read_json(path: Path, error: type[Q8Error] = InputError) -> Any:
    """Read a file of strict JSON, whose strings are all text.

    Raises:
        Q8Error: the given class, with the file and, if known, the line or the path inside the document.
    """
    text = read_text(path, error)
    value = parse_strict_json(text, path, error)
    if _SURROGATE_ESCAPE.search(text):
        for place, one in _values(value):
            if isinstance(one, str) and (problem := text_problem(one)):
                raise error(f"{path}: {place_name(place)} {problem}")
    return value


def read_toml(path: Path, error: type[Q8Error] = InputError) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        Q8Error: the given one, with the file and, where it is known, the line or the place.
    """
    try:
        document = tomllib.loads("\n".join(lines_of(read_text(path, error))))
    except RecursionError as problem:
        raise error(f"{path} is not valid TOML: nested too deeply") from problem
    except tomllib.TOMLDecodeError as problem:
        raise error(f"{path} is not valid TOML: {problem}") from problem
    except ValueError as problem:  # Python's bound, whose words are for programmers
        raise error(f"{path} is not valid TOML: a number has too many digits") from problem
    for place, one in _values(document):
        # TOML's own range, in which every number has a float beside it
        if isinstance(one, int) and not -(2**63) <= one < 2**63:
            raise error(f"{path}: {place_name(place)} is {shown(one)}; allowed: from -2^63 to 2^63 - 1")
    return document


def validated(kind: type[Kind], values: Mapping[str, Any], what: str, error: type[Q8Error] = InputError) -> Kind:
    """Return a dataclass made of plain values, each of its own type and no key more.

    Args:
        kind: the dataclass; its fields may be dataclasses, and lists and mappings of them.
        values: of its fields by their names.
        what: what the message calls them, such as the file.
        error: what to raise.

    Raises:
        Q8Error: the given one, naming the first value that is wrong, and what is allowed there.
    """
    # as JSON: strict validation of Python's values takes no table for a dataclass
    return validated_json(kind, json.dumps(dict(values), default=str), what, error)


def validated_json(kind: type[Kind], text: str, what: str, error: type[Q8Error] = InputError) -> Kind:
    """Return a dataclass made of a text of JSON: see `validated`."""
    try:
        return _parser(kind).validate_json(text, strict=True, extra="forbid")
    except error as problem:  # by the dataclass itself
        raise error(f"{what}: {problem}") from None
    except ValidationError as problem:
        place, words = first_problem(problem)
        allowed = f"; allowed here: {', '.join(_fields_at(kind, place))}" if words == "is unknown" else ""
        raise error(f"{what}: {place_name(place)} {words}{allowed}") from problem


def place_name(place: Place) -> str:
    """``("data", 0, "text")`` -> ``data[0].text``."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{_key(part)}" for part in place]
    return "".join(parts).removeprefix(".") or "the document"


def shown(value: object) -> str:
    """Return a value for a message: short, on one line, and in JSON's words where they differ from Python's."""
    if value is None or isinstance(value, bool):
        return _LITERALS[value]
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    return _repr.repr(value)


def first_problem(error: ValidationError) -> tuple[tuple[str | int, ...], str]:
    """Return path and message of the first problem that pydantic found: ``is null; allowed: a text``."""
    problems = error.errors(include_url=False)
    # a misspelt key is also a missing one: its own name says more
    problem = next((one for one in problems if one["type"] in _UNKNOWN), problems[0])
    # pydantic also names the member of a union that it tried
    place = tuple(part for part in problem["loc"] if not str(part).startswith("list["))
    kind = problem["type"]
    if kind == "json_invalid":
        return (), f"cannot be read: {problem['msg']}"
    if kind == "missing":
        return place, "is missing"
    if kind in _UNKNOWN:
        return place, "is unknown"
    if isinstance(problem["input"], str) and (no_text := text_problem(problem["input"])):
        return place, no_text
    allowed = _ALLOWED[kind].format(**problem.get("ctx", {})) if kind in _ALLOWED else problem["msg"]
    return place, f"is {shown(problem['input'])}; allowed: {allowed}"


@cache
def _parser(kind: type[Kind]) -> TypeAdapter[Kind]:
    """Return the parser of a dataclass: to make one takes longer than to use it."""
    return TypeAdapter(kind)


def _fields_at(kind: type[object], place: tuple[str | int, ...]) -> tuple[str, ...]:
    """Return the fields of the dataclass in which pydantic found an unknown key."""
    found: Any = kind
    for part in place[:-1]:
        found = get_type_hints(found)[str(part)] if is_dataclass(found) else _held(found)
        if NoneType in get_args(found):
            found = _held(found)
    return tuple(found.__dataclass_fields__)


def _held(hint: Any) -> Any:
    """Return what a list or mapping holds, or what may be None, by its type."""
    return [one for one in get_args(hint) if not isinstance(one, EllipsisType) and one is not NoneType][-1]


def _key(name: str) -> str:
    return name if 0 < len(name) <= _repr.maxstring and name.isprintable() else shown(name)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key in found if counts[key] > 1)
        raise _Refused(f"an object has the key {shown(twice)} twice")
    return found


def _no_constant(name: str) -> Any:
    raise _Refused(f"not valid JSON: {name} is no number")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise _Refused(f"the number {shown(digits)} is too large")
    return value


def _values(document: Any) -> list[tuple[Place, object]]:
    """All keys and values with their places; without recursion, since a document may be nested deeply."""
    found: list[tuple[Place, object]] = []
    waiting: list[tuple[tuple[str | int, ...], Any]] = [((), document)]
    while waiting:
        place, one = waiting.pop()
        if isinstance(one, list):
            waiting += [((*place, index), item) for index, item in enumerate(cast("list[Any]", one))]
        elif isinstance(one, dict):
            items = cast("dict[str, Any]", one).items()
            found += [((*place, key), key) for key, _ in items]
            waiting += [((*place, key), item) for key, item in items]
        else:
            found.append((place, one))
    return found
