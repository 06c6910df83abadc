"""The wheel's name tells the truth about the library in it; that it works without a compiler is for .ci/wheel-smoke."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.tags import parse_tag, sys_tags

from q8core.native import build_hook, compile
from q8core.native.build_hook import NativeKernel
from q8core.native.wheel_tag import platform_tag

GLIBC = ("libm.so.6", "libc.so.6", "GLIBC_2.2.5", "GLIBC_2.14")


@pytest.fixture
def library(root: Path) -> Path:
    file = root / "q8core" / "native" / compile.LIBRARY
    if not file.exists():
        pytest.skip("the native kernel was not built")
    return file


def tag_of(tmp_path: Path, *names: str) -> str:
    """The platform of a library that needs these."""
    file = tmp_path / "library.so"
    file.write_bytes(b"\x7fELF\0" + "\0".join(("q8_forward", *names)).encode() + b"\0GLIBC_2.99.o")
    return platform_tag(file)


@pytest.mark.parametrize(
    ("more", "glibc"), [((), 17), (("GLIBC_2.17",), 17), (("GLIBC_2.29", "GLIBC_2.4"), 29), (("GLIBC_2.34.1",), 34)]
)
def test_the_newest_symbol_decides(tmp_path: Path, more: tuple[str, ...], glibc: int) -> None:
    assert tag_of(tmp_path, *GLIBC, *more) == f"manylinux_2_{glibc}_{platform.machine()}"


@pytest.mark.parametrize("more", ["libstdc++.so.6", "libgomp.so.1", "GLIBCXX_3.4.30", "GOMP_4.0", "GCC_3.0"])
def test_a_library_that_needs_more_is_for_like_machines_only(tmp_path: Path, more: str) -> None:
    assert tag_of(tmp_path, *GLIBC, more) == f"linux_{platform.machine()}"


def test_another_c_library_is_not_manylinux(tmp_path: Path) -> None:
    assert tag_of(tmp_path, "libc.musl-x86_64.so.1") == f"linux_{platform.machine()}"
    assert tag_of(tmp_path) == f"linux_{platform.machine()}"


def run_hook(version: str) -> dict[str, Any]:
    data: dict[str, Any] = {"force_include": {}, "pure_python": True}
    arguments: Any = (str(Path.cwd()), {}, None, None, "", "wheel", SimpleNamespace(display_warning=lambda text: None))
    hook = NativeKernel(*arguments)
    hook.initialize(version, data)
    data["packed"] = [Path(file).read_bytes() for file in data["force_include"]]
    hook.finalize(version, data, "")
    return data


def test_the_hook_packs_the_library_under_a_tag_for_every_python(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a compiler that is done at once."""

    def compile_library(folder: Path) -> Path:
        return Path(shutil.copy(library, folder))

    beside = build_hook._beside
    quick = SimpleNamespace(compile_library=compile_library, CannotCompile=compile.CannotCompile)
    monkeypatch.setattr(build_hook, "_beside", lambda name: quick if name == "compile" else beside(name))
    data = run_hook("standard")
    assert data["packed"] == [library.read_bytes()]
    assert list(data["force_include"].values()) == ["q8core/native/libq8bert.so"]
    assert data["pure_python"] is False
    assert data["tag"].startswith("py3-none-manylinux_2_")
    assert parse_tag(data["tag"]) <= set(sys_tags())


def test_without_a_compiler_the_wheel_is_for_any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert run_hook("standard") == {"force_include": {}, "pure_python": True, "packed": []}
