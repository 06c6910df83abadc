"""One served checkpoint and its engines: opened, loaded, self-tested and warmed up before it takes requests."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from tokenizers import Tokenizer

from q8core.checkpoint import Checkpoint
from q8core.checkpoint.config import SHORTEST_INPUT
from q8core.engines import load_engine, self_test
from q8core.engines.protocol import Engine
from q8core.errors import InputError
from service.models.folder_state import FolderState, folder_state
from service.queueing.batcher import Lane, LoadedModel

log = logging.getLogger(__name__)

_loads = count()


@dataclass(frozen=True)
class LoadedEngine:
    """An engine that has passed its self-test, with its measurements."""

    engine: Engine
    selftest_max_abs_diff: float
    load_seconds: float

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Resident bytes by kind, the label of the metric."""
        memory = self.engine.memory()
        return {"weights": memory.weights, "scales": memory.scales, "workspace": memory.workspace}


@dataclass(eq=False)
class Model:
    """A verified checkpoint under the name that requests use; ``engines`` is filled while it loads.

    Attributes:
        folder_state: state of the checkpoint's folder before it was read.
        max_length: tokens of the longest input; longer ones are cut.
        load: number of this load in the process, so that the next checkpoint of a name has lanes of its own.
    """

    name: str
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    folder_state: FolderState
    max_length: int
    engines: dict[str, LoadedEngine] = field(default_factory=lambda: dict[str, LoadedEngine]())
    load: int = field(default_factory=lambda: next(_loads))
    _said_cut: bool = False

    @property
    def task(self) -> str:
        """The task of the model."""
        return self.checkpoint.task

    @property
    def revision(self) -> str:
        """Beginning of the int8 weights' digest; ``none`` for a plain Hugging Face folder."""
        return (self.checkpoint.quantized_sha256 or "none")[:12]

    @property
    def loaded(self) -> LoadedModel:
        """The identity of this load, different from other checkpoints of the same name."""
        return LoadedModel(self.task, self.name, self.load)

    @property
    def limit_text(self) -> str:
        """The longest input in tokens, and where the limit comes from."""
        positions = self.checkpoint.config.spec.positions
        if self.max_length == positions:
            return f"the model takes at most {positions}"
        return f"at most {self.max_length} of the model's {positions} are read (--max-length)"

    def note_cut(self) -> None:
        """Log the first time that a text is cut; the header of every answer counts its own."""
        if not self._said_cut:
            self._said_cut = True
            what = "questions are" if self.task == "qa" else f"texts with more than {self.max_length} tokens are"
            log.warning("%s: %s cut; x-q8bert-truncated counts them in each answer", self.name, what)

    def lane(self, backend: str) -> Lane:
        """Return the lane of the model's engine on this backend."""
        return Lane(self.task, backend, self.name, self.load)


def open_model(path: Path, name: str | None = None, max_length: int | None = None) -> Model:
    """Open a checkpoint and check everything that would fail each request.

    Args:
        path: the checkpoint's folder.
        name: the name to serve it under; None: the checkpoint's own.
        max_length: tokens of the longest input; None: as the checkpoint says.

    Raises:
        CheckpointError: the folder is missing, damaged or cannot serve.
        InputError: the model cannot read inputs of that length.
    """
    state = folder_state(path)
    checkpoint = Checkpoint.open(path)
    tokenizer, positions = checkpoint.tokenizer(), checkpoint.config.spec.positions
    if max_length is not None and not SHORTEST_INPUT <= max_length <= positions:
        raise InputError(
            f"--max-length is {max_length}; {path} allows {SHORTEST_INPUT} to {positions} (the model's positions)"
        )
    try:
        checkpoint.check_pairs(tokenizer)
    except InputError as error:
        log.warning("pairs of texts, and questions, are refused: %s", error)
    return Model(name or checkpoint.name, checkpoint, tokenizer, state, max_length or checkpoint.max_length)


def load_engines(
    model: Model,
    backends: Sequence[str],
    kernel: str,
    threads: int,
    check_stop: Callable[[], None] = lambda: None,
) -> dict[Lane, Engine]:
    """Build, self-test and warm up a model's engines on the calling thread, and store them in the model.

    Raises:
        EngineError: an engine computes something else than the checkpoint's golden outputs.
        CheckpointError: the checkpoint lacks what a backend needs.
    """
    engines: dict[Lane, Engine] = {}
    for backend in backends:
        check_stop()
        begin = time.monotonic()
        engine = load_engine(model.checkpoint, backend, kernel=kernel if backend == "int8" else "auto", threads=threads)
        check_stop()
        result = self_test(engine, model.checkpoint)
        check_stop()
        engine.warmup()
        seconds = time.monotonic() - begin
        model.engines[backend] = LoadedEngine(engine, result.max_abs_diff, seconds)
        engines[model.lane(backend)] = engine
        facts = engine.describe()
        log.info(
            "%s on %s: %s, %s kernel (%s), %s bits, %s weights, %.1f s",
            model.task, backend, model.name, engine.kernel,
            facts["isa"], facts["bits"], facts["weights_memory"], seconds,
        )  # fmt: skip
        if facts.get("bits_note"):
            log.info("%s on %s: %s", model.name, backend, facts["bits_note"])
    return engines
