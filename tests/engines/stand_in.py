"""Compiles variants of the native kernel for CPUs with AVX2 alone: headers replace the instructions that these lack."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from q8core.native import compile, variants

# Not contracted: other products and sums would be other bits.
FLAGS = ("-std=c++17", "-fPIC", "-fopenmp", "-ffp-contract=off", "-Wno-psabi")
VARIANTS = {
    "amx": ("-O1", "avx512.h", "-DSTAND_IN_FOR_TILES"),
    "avx512_vnni": ("-O1", "avx512.h"),
    "avx_vnni": ("-O0", "dpbusd.h", "-D__AVXVNNI__"),
}
"""Variant -> optimization, the header, and more that makes the sources take this variant's products."""


def compiled_for_avx2(variant: str, folder: Path) -> int:
    """The variant's address, as `variants` gives those of the library.

    It takes ten seconds to compile, so the first of the processes that share the folder does it for all.
    """
    compiler = shutil.which("g++")
    if compiler is None or "avx2" not in variants():
        pytest.skip(f"this CPU has no {variant}, and the variant cannot be compiled for AVX2 here")
    library = folder / f"{variant}-{_digest()}.so"
    with (folder / f"{variant}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _compile(compiler, variant, library)
    return ctypes.addressof(ctypes.c_char.in_dll(ctypes.CDLL(str(library)), f"variant_{variant}"))


def _digest() -> str:
    """Of the sources, and of the headers here."""
    digest = hashlib.sha256(compile.source_digest().encode())
    for file in sorted([Path(__file__), *Path(__file__).parent.glob("*.h")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _compile(compiler: str, variant: str, library: Path) -> None:
    object_file, unfinished = library.with_suffix(".o"), library.with_suffix(".part")
    source = Path(compile.__file__).with_name("src") / "variant.cpp"
    level, header, *macros = VARIANTS[variant]
    chosen = (*compile.VARIANTS["avx2"], level, *macros, f"-DQ8_VARIANT={variant}")
    included = ("-include", str(Path(__file__).with_name(header)))
    subprocess.run([compiler, *FLAGS, *chosen, *included, "-c", str(source), "-o", str(object_file)], check=True)
    # Linked by itself, as the library is: without a second OpenMP runtime.
    subprocess.run([compiler, "-shared", str(object_file), "-o", str(unfinished)], check=True)
    unfinished.rename(library)
