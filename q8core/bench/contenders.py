"""How our engines and stock transformers are loaded from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable

from q8core.bench.contender import FEW_BITS, STOCK, Contender
from q8core.checkpoint import Checkpoint
from q8core.engines import Engine, TokenBatch, load_engine
from q8core.engines.engine import EncoderEngine
from q8core.errors import EngineError
from q8core.native import load_library


def missing_engines() -> dict[str, str]:
    """Return the contenders that this installation has no kernel for, and why."""
    try:
        load_library()
    except EngineError as error:
        return {"int8-native": str(error)}
    return {}


class OurEngine:
    """One of our engines."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def bind(self, batch: TokenBatch) -> Callable[[], object]:
        """Use the batch as it is, packed."""
        return lambda: self._engine.infer(batch)


def load_named_engine(name: str, checkpoint: Checkpoint, threads: int) -> EncoderEngine:
    """Load one of `OURS`, as serving does; one of few bits from the checkpoint that `prepare_few_bits` wrote.

    Raises:
        EngineError: if its kernel cannot be used on this machine.
    """
    if name in FEW_BITS:
        return load_engine(checkpoint.path / name, "int8", "native", threads)
    backend, _, kernel = name.partition("-")
    return load_engine(checkpoint, backend, kernel or "auto", threads)


def load_contender(name: str, checkpoint: Checkpoint, threads: int) -> Contender:
    """Load stock transformers or one of `OURS`.

    Raises:
        EngineError: if its kernel cannot be used on this machine.
    """
    if name == STOCK:
        from q8core.bench.stock import load_stock  # imports torch, which a process of our engine may do without

        return load_stock(checkpoint.path, checkpoint.task)
    return OurEngine(load_named_engine(name, checkpoint, threads))
