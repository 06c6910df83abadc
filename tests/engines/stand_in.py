"""Compiles the native kernel's AVX-VNNI variant for CPUs with AVX2 alone: `dpbusd.h` replaces its one instruction."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from q8core.native import compile, variants

HEADER = Path(__file__).with_name("dpbusd.h")
# Not optimized, to be compiled in seconds; contracted products and sums would be other bits.
FLAGS = ("-std=c++17", "-O0", "-fPIC", "-fopenmp", "-ffp-contract=off", "-Wno-psabi")


def avx_vnni_for_avx2(folder: Path) -> int:
    """The variant's address, as `variants` gives those of the library."""
    compiler = shutil.which("g++")
    if compiler is None or "avx2" not in variants():
        pytest.skip("this CPU has no AVX-VNNI, and its variant cannot be compiled for AVX2 here")
    object_file, library = folder / "variant.o", folder / "variant.so"
    source = Path(compile.__file__).with_name("src") / "variant.cpp"
    chosen = (*compile.VARIANTS["avx2"], "-D__AVXVNNI__", "-DQ8_VARIANT=avx_vnni", "-include", str(HEADER))
    subprocess.run([compiler, *FLAGS, *chosen, "-c", str(source), "-o", str(object_file)], check=True)
    # Linked by itself, as the library is: without a second OpenMP runtime.
    subprocess.run([compiler, "-shared", str(object_file), "-o", str(library)], check=True)
    return ctypes.addressof(ctypes.c_char.in_dll(ctypes.CDLL(str(library)), "variant_avx_vnni"))
