"""The step of the package's build that compiles the native kernel, if possible."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeKernel(BuildHookInterface[Any]):
    """Adds the compiled library to a wheel. Without a compiler the wheel works too, with torch's kernels only."""

    PLUGIN_NAME = "custom"
    _folder: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the library, next to the sources for an editable install, else into the wheel."""
        if self.target_name != "wheel":
            return
        compiling, package = _beside("compile"), Path(__file__).parent
        try:
            if version == "editable":
                compiling.compile_library(package)
                return
            self._folder = tempfile.TemporaryDirectory()
            library = compiling.compile_library(Path(self._folder.name))
        except compiling.CannotCompile as reason:
            self.app.display_warning(f"q8bert is installed without its native kernel: {reason}")
            return
        build_data["force_include"][str(library)] = f"q8core/native/{library.name}"
        build_data["pure_python"] = False
        # Any Python 3 loads it through ctypes: it uses nothing of CPython's ABI.
        build_data["tag"] = f"py3-none-{_beside('wheel_tag').platform_tag(library)}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the temporary folder of the library."""
        if self._folder is not None:
            self._folder.cleanup()


def _beside(name: str) -> Any:
    """Import a file of this folder by its path: the package itself cannot be imported before torch is installed."""
    spec = importlib.util.spec_from_file_location(f"q8bert_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
