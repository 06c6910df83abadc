"""Files to try on readers: any bytes, and valid files with something wrong at a place."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

_PIECES = [
    *("\ufeff", "\0", '"', '""', "'", "\\", "\\ud83d", "\\u0000", ",", ";", "\t", "\n", "\r", "\r\n", "\u2028", "\x85"),
    *("é", "😀", "{", "}", "[", "]", ":", "#", "=", "NaN", "null", "-", "1e999", "-1", "true"),
    *("[" * 3000, '{"a":' * 3000, "9" * 5000, "1e400", "x" * 140_000),
]
_RAW = [b"\xff", b"\xc3", b"\xed\xa0\xbd", b"\xff\xfe", b"\x00", b"\x80" * 9]

ODD_VALUES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 1, 3.5, 10**30, 10**400, -(10**400), 2**63, float("nan"), float("inf")]),
    st.sampled_from(
        ["", " ", "x", "1", "\ud83d", "a\0b", "é" * 300, [], {}, [[]], [None], {"a": 1}, ["x", "y"], [1, 2]]
    ),
    st.integers(),
    st.text(max_size=5),
)


@st.composite
def broken_bytes(draw: st.DrawFn, valid: bytes) -> bytes:
    """Any bytes, or a valid file that is cut, has bits flipped, or pieces put into it or taken out."""
    if draw(st.integers(0, 7)) == 0:
        return draw(st.binary(max_size=80))
    found = bytearray(valid)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(len(found) - 1, 0)))
        kind = draw(st.integers(0, 4))
        if kind == 0:
            del found[place:]
        elif kind == 1 and found:
            found[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == 2:
            del found[place : place + draw(st.integers(1, 20))]
        else:
            piece = draw(st.sampled_from([*(each.encode() for each in _PIECES), *_RAW]))
            found[place:place] = piece
    return bytes(found)


def _places(value: Any, here: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(place for key, item in items for place in _places(item, (*here, key)))]


@st.composite
def wrong_values(draw: st.DrawFn, valid: Any) -> Any:
    """A valid document with other values, missing or further keys, at one or two places."""
    found = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(_places(found)))
        odd = copy.deepcopy(draw(ODD_VALUES))
        if not place:
            if draw(st.integers(0, 9)) == 0:
                return odd
            continue
        *path, last = place
        inside = found
        for key in path:
            inside = inside[key]
        kind = draw(st.integers(0, 3))
        if kind == 0:
            del inside[last]
        elif kind == 1 and isinstance(inside, dict):
            inside[draw(st.sampled_from(["surprise", "text", "\ud83d", ""]))] = odd
        else:
            inside[last] = odd
    return found


def broken_json(valid: Any) -> st.SearchStrategy[bytes]:
    """Bytes made of a document: wrong as text, or as values."""
    text = json.dumps(valid, indent=1)
    return st.one_of(broken_bytes(text.encode()), wrong_values(valid).map(lambda value: json.dumps(value).encode()))
