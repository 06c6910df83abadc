"""The registry of served models: chooses the one for a request, and keeps a replaced one until it is not needed.

After start-up everything here runs on the event loop: choosing a model and holding it happen in one step, with no other
in between.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from q8core.cpus import available_cpus
from q8core.engines.protocol import Engine
from q8core.errors import InputError
from service.errors import UnknownModel
from service.models.model import LoadedEngine, Model, load_engines, open_model
from service.queueing.batcher import Lane
from service.settings import Settings

__all__ = ["BUNDLED", "LoadedEngine", "Model", "ModelRegistry", "bundled_checkpoints"]

log = logging.getLogger(__name__)

BUNDLED = Path(__file__).parent.parent / "checkpoints"


class ModelRegistry:
    """Models by name; the first one of a task is its default.

    Args:
        models: opened checkpoints by name.
        backends: the backends to load for each.
        kernel: the int8 kernel, or auto.
        threads: CPU threads of the engines; None: all that the process may use.
        max_length: tokens of the longest input; None: as each checkpoint says.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        backends: Sequence[str],
        kernel: str = "auto",
        threads: int | None = None,
        max_length: int | None = None,
    ) -> None:
        self.models = dict(models)
        self.backends = tuple(backends)
        self.on_release: Callable[[Model], None] = lambda model: model.engines.clear()
        """Called when the last request of a replaced or removed model is done."""
        self._uses: Counter[Model] = Counter()
        self._retired: list[Model] = []
        self._kernel = kernel
        self._threads = threads or available_cpus()
        self.max_length = max_length

    @classmethod
    def open(
        cls,
        paths: Sequence[Path],
        backends: Sequence[str],
        kernel: str = "auto",
        threads: int | None = None,
        named: Sequence[tuple[str, Path]] = (),
        max_length: int | None = None,
    ) -> ModelRegistry:
        """Verify the checkpoints; engines come later, with `load`.

        Args:
            paths: checkpoints to serve under their own names.
            backends: as in the constructor.
            kernel: as in the constructor.
            threads: as in the constructor.
            named: further checkpoints with the names to serve them under. Without any, the bundled ones are served.
            max_length: as in the constructor.

        Raises:
            CheckpointError: a folder is missing, damaged or cannot serve.
            InputError: no checkpoint at all, two with one name, or one that cannot read inputs of that length.
        """
        sources: list[tuple[str | None, Path]] = [*((None, path) for path in paths), *named]
        models: dict[str, Model] = {}
        for name, path in sources or [(None, path) for path in bundled_checkpoints()]:
            model = open_model(path, name, max_length)
            known = models.setdefault(model.name, model)
            if known is not model:
                raise InputError(
                    f"{known.checkpoint.path} and {path} are both called {model.name!r}; "
                    "give one another name with --model NAME=PATH"
                )
        return cls(models, backends, kernel, threads, max_length)

    @classmethod
    def from_settings(cls, settings: Settings) -> ModelRegistry:
        """Open the checkpoints of the settings; raises what `open` raises."""
        return cls.open(
            settings.checkpoint,
            settings.backends,
            settings.kernel,
            settings.threads,
            settings.named_models,
            settings.max_length,
        )

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """The lanes of all models on all backends."""
        return tuple(model.lane(backend) for model in self.models.values() for backend in self.backends)

    @property
    def retired(self) -> tuple[Model, ...]:
        """Replaced and removed models that still answer the requests they had."""
        return tuple(self._retired)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that have a model."""
        return tuple(dict.fromkeys(model.task for model in tuple(self.models.values())))

    @property
    def defaults(self) -> dict[str, Model]:
        """For each task the model that answers requests that name none."""
        return {task: self.of_task(task)[0] for task in self.tasks}

    def uses(self, model: Model) -> int:
        """Return how many requests hold this model."""
        return self._uses[model]

    def of_task(self, task: str) -> tuple[Model, ...]:
        """Return the models of a task, its default first."""
        return tuple(model for model in tuple(self.models.values()) if model.task == task)

    def choose(self, task: str, name: str | None = None) -> Model:
        """Return the model that a request names, or its task's default.

        Raises:
            UnknownModel: no such model, or it has another task.
        """
        own = self.of_task(task)
        loaded = ", ".join(model.name for model in own) or "none"
        if name is None:
            if own:
                return own[0]
            raise UnknownModel(f"no checkpoint for {task} is loaded; loaded: {', '.join(self.models) or 'none'}")
        model = self.models.get(name)
        if model is None:
            raise UnknownModel(f"unknown model {name!r}; loaded for {task}: {loaded}")
        if model.task != task:
            raise UnknownModel(f"the model {name!r} is for {model.task}; loaded for {task}: {loaded}")
        return model

    def load(self, check_stop: Callable[[], None] = lambda: None) -> dict[Lane, Engine]:
        """Load every model on the calling thread; raises what `load_model` raises."""
        engines: dict[Lane, Engine] = {}
        for model in self.models.values():
            engines |= self.load_model(model, check_stop)
        for note in {engine.describe().get("speed_note") for engine in engines.values()} - {None}:
            log.warning("%s", note)
        return engines

    def load_model(
        self,
        model: Model,
        check_stop: Callable[[], None] = lambda: None,
        *,
        backends: Sequence[str] | None = None,
    ) -> dict[Lane, Engine]:
        """Build, self-test and warm up one model's engines on the calling thread; all backends unless some are named.

        Raises:
            EngineError: an engine computes something else than the checkpoint's golden outputs.
            CheckpointError: a checkpoint lacks what a backend needs.
        """
        return load_engines(model, backends or self.backends, self._kernel, self._threads, check_stop)

    @contextmanager
    def in_use(self, model: Model) -> Generator[None]:
        """Keep a model's engines loaded until the block ends, even if the model is replaced meanwhile."""
        self._uses[model] += 1
        try:
            yield
        finally:
            self._uses[model] -= 1
            if not self._uses[model]:
                del self._uses[model]
                self._release_if_unused(model)

    def put(self, model: Model) -> Model | None:
        """Serve a loaded model from now on; return the replaced one, which is released after its last request."""
        old = self.models.get(model.name)
        self.models[model.name] = model  # keeps the position of the old one: a default stays the default
        if old is not None:
            self._retire(old)
        return old

    def remove(self, name: str) -> Model:
        """Give a model no more requests; it is released after its last one.

        Raises:
            UnknownModel: no model has this name.
        """
        model = self.models.pop(name, None)
        if model is None:
            raise UnknownModel(f"unknown model {name!r}; loaded: {', '.join(self.models) or 'none'}")
        self._retire(model)
        return model

    def _retire(self, model: Model) -> None:
        self._retired.append(model)
        self._release_if_unused(model)

    def _release_if_unused(self, model: Model) -> None:
        if model in self._retired and not self._uses[model]:
            self._retired.remove(model)
            self.on_release(model)


def bundled_checkpoints() -> list[Path]:
    """Return the folders of the checkpoints that come with the package.

    Raises:
        InputError: the installation has none.
    """
    found = sorted(path.parent for path in BUNDLED.glob("*/q8bert.json"))
    if not found:
        raise InputError(f"no checkpoint is bundled in {BUNDLED}; name one with --checkpoint PATH")
    return found
