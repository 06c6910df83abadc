"""Compiles the library. Uses only the standard library: the build runs it before anything is installed."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LIBRARY = "libq8bert.so"
_SOURCES = Path(__file__).with_name("src")

_AVX512 = ("f", "bw", "vl", "dq", "vnni")
_AVX512_FLAGS = (*(f"-mavx512{part}" for part in _AVX512), "-mfma", "-mprefer-vector-width=512")
_AVX2_FLAGS = ("-mavx2", "-mfma")
VARIANTS: dict[str, tuple[str, ...]] = {
    "amx": (*_AVX512_FLAGS, "-mamx-tile", "-mamx-int8"),
    "avx512_vnni": _AVX512_FLAGS,
    "avx_vnni": (*_AVX2_FLAGS, "-mavxvnni"),
    "avx2": _AVX2_FLAGS,
    "portable": (),
}
"""Variant -> compiler flags; the best variant first."""
# By default the compiler stops inlining once it has made a file larger by 40 %, even for vectors' functions in hot
# loops. A variant is a single file, so new code anywhere could slow down existing code.
_INLINING = "--param=inline-unit-growth=200"
# No contraction of products and sums, which the compiler may apply or not: all variants must give the same bits.
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fopenmp",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-exceptions",
    _INLINING,
)
_QUIET = ("-fno-rtti", "-fno-threadsafe-statics", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi")


class CannotCompile(Exception):
    """Raised if there is no usable compiler, or it fails; the message says why."""


def source_digest() -> str:
    """Return a digest of the sources, to detect a library that was built from other sources."""
    digest = hashlib.sha256()
    for path in sorted(_SOURCES.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def compile_library(folder: Path) -> Path:
    """Compile the library into `folder` and return its path.

    Raises:
        CannotCompile: if this is not Linux, there is no g++, or it fails.
    """
    if not sys.platform.startswith("linux"):
        raise CannotCompile(f"the native kernel is for Linux, this is {sys.platform}")
    name = os.environ.get("CXX", "g++")
    compiler = shutil.which(name)
    if compiler is None:
        raise CannotCompile(f"there is no C++ compiler {name!r} here")
    names = tuple(VARIANTS) if platform.machine() == "x86_64" else ("portable",)
    with tempfile.TemporaryDirectory() as build:
        jobs = {name: ("variant.cpp", (*VARIANTS[name], f"-DQ8_VARIANT={name}")) for name in names}
        jobs["library"] = ("library.cpp", (f'-DQ8_DIGEST="{source_digest()}"',))

        def compile_one(name: str) -> str:
            source, flags = jobs[name]
            target = str(Path(build, f"{name}.o"))
            _run(compiler, *_FLAGS, *_QUIET, *flags, "-c", str(_SOURCES / source), "-o", target)
            return target

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, jobs))
        # Not linked with an OpenMP runtime: the one that torch brings is loaded before it, two would fight for CPUs.
        _run(compiler, "-shared", "-Wl,--as-needed", *objects, "-o", str(Path(build, LIBRARY)))
        # Moved, not overwritten: a process that uses the old library keeps it.
        shutil.move(str(Path(build, LIBRARY)), folder / LIBRARY)
    return folder / LIBRARY


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CannotCompile(f"{Path(command[0]).name} failed: {done.stderr.strip()[-2000:]}")
