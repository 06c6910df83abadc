"""A note about speed on CPUs without the instructions that make int8 fast."""

from __future__ import annotations

from collections.abc import Set

_DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
"""CPU flags (x86 and ARM) of instructions for dot products of 8-bit integers."""


def speed_note(kernel: str, isa: str, flags: Set[str]) -> str | None:
    """Return a note on the speed to expect of a kernel on this CPU, or None if there is nothing to note.

    Args:
        kernel: the kernel's name.
        isa: the instruction set that it uses; for the native kernel, the variant.
        flags: the CPU's flags; empty if unknown.
    """
    advice = "answers are as exact, but slower than the README's figures: `q8bert bench` measures them here"
    if kernel == "native" and isa == "avx2":
        return f"the native kernel runs its AVX2 variant, without VNNI; {advice}"
    if kernel == "native" and isa == "portable":
        return f"the native kernel runs plain C++, without VNNI or AVX2; {advice}"
    if kernel != "native" and flags and not flags & _DOT_PRODUCTS:
        return f"no VNNI or other 8-bit dot products on this CPU: torch's {kernel} kernel runs without; {advice}"
    return None
