"""Loads the compiled library, and declares the functions that it exports."""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, c_char_p, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from q8core.errors import EngineError, InputError
from q8core.native.compile import LIBRARY, VARIANTS, source_digest
from q8core.native.openmp import load_openmp
from q8core.native.structs import MIRRORED, Batch, FloatModel, Linear, Model

ISA_VARIABLE = "Q8BERT_MAX_ISA"
"""The environment variable that names the best variant that may be used."""

VARIANT_NAMES = tuple(VARIANTS)
"""All variants, the best first."""


_ROWS = (c_void_p, c_void_p, c_int, c_int64, c_int64)
"""Arguments for a tensor: variant, address, type, rows, columns."""

_FUNCTIONS: tuple[tuple[str, Any, tuple[Any, ...]], ...] = (
    ("q8_sizeof", c_int64, (c_char_p,)),
    ("q8_variant", c_void_p, (c_int,)),
    ("q8_variant_name", c_char_p, (c_void_p,)),
    ("q8_order_bytes", c_int64, (c_void_p, c_int64, c_int64)),
    ("q8_pack", c_int, (c_void_p, c_void_p, c_int64, c_int64, c_int, c_int, *(c_void_p,) * 5)),
    ("q8_workspace_bytes", c_int64, (POINTER(Model), POINTER(Batch), c_int)),
    ("q8_forward", c_float, (c_void_p, POINTER(Model), POINTER(Batch), c_void_p, c_void_p, c_int)),
    ("q8_accumulate", None, (c_void_p, POINTER(Linear), c_void_p, c_int64, c_void_p)),
    ("q8_products_bytes", c_int64, (POINTER(Model), POINTER(Batch))),
    ("q8_products", None, (c_void_p, POINTER(Model), POINTER(Batch), c_void_p, c_int)),
    ("q8_has_float", c_int, (c_void_p,)),
    ("q8_pack_float", None, (c_void_p, c_int64, c_int64, c_void_p)),
    ("q8_prefer_large_pages", None, (c_void_p, c_int64)),
    ("q8_float_workspace_bytes", c_int64, (POINTER(FloatModel), POINTER(Batch), c_int)),
    ("q8_forward_float", c_float, (c_void_p, POINTER(FloatModel), POINTER(Batch), c_void_p, c_void_p, c_int)),
    ("q8_row_magnitudes", None, (*_ROWS, c_void_p, c_int)),
    ("q8_row_sides", None, (*_ROWS, c_void_p, c_void_p, c_int)),
    ("q8_to_grid", None, (*_ROWS, c_void_p, c_float, c_float, c_void_p, c_int, c_void_p, c_int, c_int)),
    ("q8_rescale", None, (*_ROWS, c_void_p, c_void_p, c_int)),
    ("q8_column_sums", None, (*_ROWS, c_void_p, c_int)),
)
"""Name, result, arguments."""


@cache
def load_library() -> Any:
    """Return the library with typed functions.

    Raises:
        EngineError: if it was not built, cannot be loaded, or was built from other sources.
    """
    path = Path(__file__).with_name(LIBRARY)
    if not path.exists():
        raise EngineError(
            "the native kernel was not built: q8bert's wheel has it, and installing from the sources with g++ at hand "
            "builds it (Debian: apt install g++, then pip install again)"
        )
    load_openmp()  # must be there first: the library is not linked with one
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(f"the native kernel cannot be loaded: {error}") from error
    library.q8_digest.restype = c_char_p
    if library.q8_digest().decode() != source_digest():
        raise EngineError("the native kernel was built from other sources than these: pip install q8bert again")
    for name, result, arguments in _FUNCTIONS:
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    _check_structures(library)
    return library


def _check_structures(library: Any) -> None:
    """Compare the sizes of the structures with those in C++: a missing field would shift all fields after it.

    Raises:
        EngineError: a size differs; names the first one.
    """
    for mirror in MIRRORED:
        theirs, ours = library.q8_sizeof(mirror.__name__.encode()), ctypes.sizeof(mirror)
        if theirs != ours:
            raise EngineError(
                f"structs.{mirror.__name__} has {ours} bytes, the native kernel's has {theirs}: "
                "structs.py and the headers in native/src must list the same fields"
            )


def variants() -> dict[str, int]:
    """Return the variants that this CPU can run and `Q8BERT_MAX_ISA` allows, best first: name -> address.

    Raises:
        EngineError: if there is no library.
        InputError: if the variable has an unknown value.
    """
    found, limit = _runnable(), os.environ.get(ISA_VARIABLE)
    if not limit:
        return found
    if limit not in VARIANT_NAMES:
        raise InputError(f"{ISA_VARIABLE} is {limit!r}; allowed: {', '.join(VARIANT_NAMES)}")
    allowed = VARIANT_NAMES[VARIANT_NAMES.index(limit) :]
    return {name: address for name, address in found.items() if name in allowed}


@cache
def _runnable() -> dict[str, int]:
    library, found = load_library(), dict[str, int]()
    while address := library.q8_variant(len(found)):
        found[library.q8_variant_name(address).decode()] = address
    return found
