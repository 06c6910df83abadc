"""What an engine is: token batches in, logits out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, cast, get_args

from q8core.arrays import Logits
from q8core.engines.packing import TokenBatch
from q8core.errors import InputError
from q8core.model.head import HeadSpec, Reads

Backend = Literal["fp32", "int8"]
KernelName = Literal["auto", "native", "onednn", "fbgemm"]

BACKENDS: tuple[str, ...] = get_args(Backend)
KERNELS: tuple[str, ...] = get_args(KernelName)


@dataclass(frozen=True)
class EngineMemory:
    """Bytes that an engine keeps resident. Shared bytes (see `Residence`) count in full for each process.

    Attributes:
        weights: matrices and tables, in the layout the kernels read.
        scales: everything else that was loaded: scales, biases, layer norms.
        workspace: peak size, within a layer, of the activations of the largest batch so far.
    """

    weights: int
    scales: int
    workspace: int

    @property
    def total(self) -> int:
        """All bytes."""
        return self.weights + self.scales + self.workspace


class Engine(Protocol):
    """A model ready to run. `infer` may be called from any one thread at a time."""

    @property
    def head(self) -> HeadSpec:
        """The model's head: it reads each sequence's first token, or every token."""
        ...

    @property
    def backend(self) -> Backend:
        """fp32 or int8."""
        ...

    @property
    def kernel(self) -> str:
        """The linear kernel in use."""
        ...

    @property
    def reads(self) -> Reads:
        """Which tokens the head reads: the "first" of each sequence, or "every" one."""
        ...

    def infer(self, batch: TokenBatch) -> Logits:
        """Return float32 logits: (B, outputs) where the head reads first tokens, else (T, outputs).

        Raises:
            InputError: if an id is outside its table or a sequence is longer than the position table.
        """
        ...

    def warmup(self) -> None:
        """Run a few shapes, so that the first request does not wait for what kernels build lazily."""
        ...

    def memory(self) -> EngineMemory:
        """Return the engine's resident bytes."""
        ...

    def describe(self) -> dict[str, object]:
        """Return kernel, instruction set, scheme, shapes, threads: plain JSON values."""
        ...


def check_backend(backend: str) -> Backend:
    """Return `backend` as a known backend.

    Raises:
        InputError: naming the allowed ones.
    """
    if backend == "fp32" or backend == "int8":
        return backend
    raise InputError(f"backend is {backend!r}; allowed: {', '.join(BACKENDS)}")


def check_kernel(kernel: str) -> KernelName:
    """Return `kernel` as a known kernel.

    Raises:
        InputError: naming the allowed ones.
    """
    if kernel in KERNELS:
        return cast(KernelName, kernel)
    raise InputError(f"kernel is {kernel!r}; allowed: {', '.join(KERNELS)}")
