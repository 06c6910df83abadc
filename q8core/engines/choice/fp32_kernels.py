"""The float32 kernels by name, and the choice between them: native where the CPU can run it, else oneDNN.

`native` computes the whole forward pass in one call of our own library; `onednn` computes the linear layers with
torch's prepacked operators and the rest with torch, which is imported only for this kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from q8core.engines.engine import Forward
from q8core.engines.loaders.native_float import float_variants, load_native_float
from q8core.engines.tensors.source import TensorSource
from q8core.errors import EngineError, InputError
from q8core.quant.plan import Plan

FP32_KERNEL_NAMES = ("native", "onednn")


@dataclass(frozen=True)
class Fp32Choice:
    """The float32 kernel to use, and why others cannot be used.

    Attributes:
        name: native or onednn.
        isa: the instruction set that it uses.
        variant: the variant of the native library; None for onednn.
        refused: kernel -> why it cannot be used here.
    """

    name: Literal["native", "onednn"]
    isa: str
    refused: dict[str, str] = field(default_factory=dict[str, str])
    variant: str | None = None

    def facts(self) -> dict[str, object]:
        """Return the choice as plain values for `describe`."""
        return {"isa": self.isa, "kernels_refused": self.refused}

    def load(self, plan: Plan, source: TensorSource) -> Forward:
        """Pack a model's float tensors.

        Raises:
            CheckpointError: if a tensor is missing or does not fit.
        """
        if self.name == "native":
            return load_native_float(plan, source, self.variant)
        import torch

        from q8core.engines.loaders.fp32 import load_fp32

        with torch.inference_mode():
            return load_fp32(plan, source)


def choose_fp32_kernel(name: str) -> Fp32Choice:
    """Return the kernel `name`, or for "auto" the first of `FP32_KERNEL_NAMES` that works here.

    Raises:
        InputError: if no float32 kernel has this name.
        EngineError: if the kernel cannot be used; says why.
    """
    if name not in ("auto", *FP32_KERNEL_NAMES):
        raise InputError(f"kernel is {name!r}; allowed for fp32: auto, {', '.join(FP32_KERNEL_NAMES)}")
    if name == "onednn":
        return Fp32Choice("onednn", _torchs_isa())
    try:
        variant = next(iter(float_variants()))
        vectors = "avx512" if variant in ("amx", "avx512_vnni") else "avx2"  # AMX and VNNI have no float32
        return Fp32Choice("native", vectors, variant=variant)
    except EngineError as error:
        if name == "native":
            raise
        return Fp32Choice("onednn", _torchs_isa(), {"native": str(error)})


def _torchs_isa() -> str:
    """Return the instruction set that torch uses."""
    import torch

    return torch.backends.cpu.get_cpu_capability()
