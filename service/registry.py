"""The checkpoints that are served and their engines, one per task and backend."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

from q8core.checkpoint import Checkpoint
from q8core.cpus import available_cpus
from q8core.engines import load_engine, self_test
from q8core.engines.protocol import Engine
from q8core.errors import CheckpointError, InputError
from q8core.tasks.classify import encode_text
from service.batcher import Lane

log = logging.getLogger(__name__)

BUNDLED = Path(__file__).parent / "checkpoints"


@dataclass(frozen=True)
class LoadedEngine:
    """An engine that has passed its self-test, with what was measured on the way."""

    engine: Engine
    selftest_max_abs_diff: float
    load_seconds: float

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Resident bytes by kind, as in the metric's label."""
        memory = self.engine.memory()
        return {"weights": memory.weights, "scales": memory.scales, "workspace": memory.workspace}


@dataclass
class Model:
    """A verified checkpoint; ``engines`` fills up while the server starts."""

    name: str
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    engines: dict[str, LoadedEngine] = field(default_factory=lambda: dict[str, LoadedEngine]())

    @property
    def revision(self) -> str:
        """Beginning of the int8 weights' digest; ``none`` for a plain Hugging Face folder."""
        return (self.checkpoint.int8_sha256 or "none")[:12]


class ModelRegistry:
    """One model per task.

    Args:
        models: opened checkpoints by task.
        backends: the backends to load for each.
        kernel: the int8 kernel, or auto.
        threads: CPU threads of the engines; None: all that the process may use.
    """

    def __init__(
        self, models: Mapping[str, Model], backends: Sequence[str], kernel: str = "auto", threads: int | None = None
    ) -> None:
        self.models = dict(models)
        self.backends = tuple(backends)
        self._kernel = kernel
        self._threads = threads or available_cpus()

    @classmethod
    def open(
        cls, paths: Sequence[Path], backends: Sequence[str], kernel: str = "auto", threads: int | None = None
    ) -> ModelRegistry:
        """Verify the checkpoints; engines come later, with `load`.

        Raises:
            CheckpointError: a folder is missing, damaged or cannot serve.
            InputError: no checkpoint at all, or two for one task.
        """
        models: dict[str, Model] = {}
        for path in paths or bundled_checkpoints():
            checkpoint = Checkpoint.open(path)
            known = models.get(checkpoint.task)
            if known is not None:
                raise InputError(
                    f"{known.checkpoint.path} and {path} are both for the task {checkpoint.task}; give one per task"
                )
            models[checkpoint.task] = _model(checkpoint)
        return cls(models, backends, kernel, threads)

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """Every task on every backend."""
        return tuple(Lane(task, backend) for task in self.models for backend in self.backends)

    def load(self, check_stop: Callable[[], None] = lambda: None) -> dict[Lane, Engine]:
        """Build, self-test and warm up every engine on the calling thread.

        Raises:
            EngineError: an engine computes something else than the checkpoint's golden outputs.
            CheckpointError: a checkpoint lacks what a backend needs.
        """
        engines: dict[Lane, Engine] = {}
        for lane in self.lanes:
            check_stop()
            begin = time.monotonic()
            model = self.models[lane.task]
            kernel = self._kernel if lane.backend == "int8" else "auto"
            engine = load_engine(model.checkpoint, lane.backend, kernel=kernel, threads=self._threads)
            check_stop()
            result = self_test(engine, model.checkpoint)
            check_stop()
            engine.warmup()
            seconds = time.monotonic() - begin
            model.engines[lane.backend] = LoadedEngine(engine, result.max_abs_diff, seconds)
            engines[lane] = engine
            facts = engine.describe()
            log.info(
                "%s on %s: %s, %s kernel (%s), %s weights, %.1f s",
                *lane, model.name, engine.kernel, facts["isa"], facts["weights_memory"], seconds,
            )  # fmt: skip
        for note in {engine.describe().get("speed_note") for engine in engines.values()} - {None}:
            log.warning("%s", note)
        return engines


def _model(checkpoint: Checkpoint) -> Model:
    """Check now what every request would stumble over: that the tokenizer fits the model."""
    tokenizer = checkpoint.tokenizer()
    size, rows = tokenizer.get_vocab_size(), checkpoint.config.vocab_size
    if size > rows:
        raise CheckpointError(f"{checkpoint.path}: the tokenizer has {size} tokens, the model's table {rows} rows")
    try:
        encode_text(tokenizer, "", None, checkpoint.max_length)
    except InputError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error
    return Model(checkpoint.name, checkpoint, tokenizer)


def bundled_checkpoints() -> list[Path]:
    """The checkpoints that come with the package.

    Raises:
        InputError: the installation holds none.
    """
    found = sorted(path.parent for path in BUNDLED.glob("*/q8bert.json"))
    if not found:
        raise InputError(f"no checkpoint is bundled in {BUNDLED}; name one with --checkpoint PATH")
    return found
