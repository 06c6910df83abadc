"""The native kernel: the int8 forward pass in C++, for AMX, AVX-512 VNNI, AVX-VNNI, AVX2 and any other CPU.

Compiled when the package is installed (``build_hook.py``); the engines work without it, on torch's own kernels.
"""

from q8core.native.library import load_library, variants
from q8core.native.openmp import runtime_threads

__all__ = ["load_library", "runtime_threads", "variants"]
