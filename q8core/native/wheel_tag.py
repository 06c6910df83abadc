"""The platform in the name of a wheel with the library. Uses only the standard library, as `compile.py` does."""

from __future__ import annotations

import platform
import re
from pathlib import Path

_STRINGS = re.compile(rb"(?<=\0)[!-~]+(?=\0)")
_GLIBC = re.compile(rb"GLIBC_2\.(\d+)(?:\.\d+)?")
# A version of any other library's symbols: its oldest release with them would count, too.
_FOREIGN = re.compile(rb"(?:GLIBCXX|CXXABI|GCC|GOMP|OMP)_[\d.]+")
_LIBRARY = re.compile(rb"lib[\w+-]+\.so[.\d]*")
_ALLOWED = {b"libc.so.6", b"libm.so.6"}
_OLDEST = 17
"""Older profiles of PEP 600 are those of systems that no Python of ours runs on; few tools know them."""


def platform_tag(library: Path) -> str:
    """Return the oldest platform that can load a library: `manylinux_2_N_ARCH` (PEP 600), N of glibc 2.N.

    A dynamic ELF file names each library that it needs, and each version of its symbols, as a string of its own. If it
    needs more than glibc, or another C library, the platform is `linux_ARCH`: the wheel is for machines like this one.
    """
    machine, names = platform.machine(), set(_STRINGS.findall(library.read_bytes()))
    versions = [int(found[1]) for name in names if (found := _GLIBC.fullmatch(name))]
    more = {name for name in names if _LIBRARY.fullmatch(name)} - _ALLOWED
    if more or not versions or any(map(_FOREIGN.fullmatch, names)):
        return f"linux_{machine}"
    return f"manylinux_2_{max(_OLDEST, *versions)}_{machine}"
