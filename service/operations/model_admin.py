"""Loads, swaps and unloads models while the service runs, without disturbing requests.

A new model is verified, loaded, self-tested and warmed up on a thread of its own while the old one serves. Then, in one
step on the event loop, new requests are routed to it; requests that began on the old one finish there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from q8core.engines.protocol import Engine
from q8core.errors import Q8Error
from service.core import Service
from service.errors import ModelConflict, ModelRejected, PathNotAllowed
from service.models.folder_state import folder_state
from service.models.model import Model, open_model
from service.models.registry import ModelRegistry
from service.queueing.batcher import Lane

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Swap:
    """A model that serves now, and the one that it replaced."""

    model: Model
    replaced: Model | None


class ModelAdmin:
    """Changes the models of a running service, one at a time.

    Args:
        service: the service whose models change.
        roots: folders below which checkpoints may be loaded; an admin key must not give access to the whole disk.
    """

    def __init__(self, service: Service, roots: Sequence[Path]) -> None:
        self._service = service
        self._roots = tuple(Path(os.path.realpath(root)) for root in roots)
        self._loading: str | None = None
        self._thread: threading.Thread | None = None

    @property
    def registry(self) -> ModelRegistry:
        """The service's models."""
        return self._service.registry

    @property
    def busy(self) -> bool:
        """Whether a model is being loaded."""
        return self._loading is not None

    async def load(self, path: str, name: str | None) -> Swap:
        """Serve the checkpoint at ``path``, in place of the model of this name if there is one.

        Args:
            path: a folder, absolute or relative to one of the roots.
            name: the name to serve it under; None: the checkpoint's own.

        Raises:
            PathNotAllowed: the folder is outside the roots.
            ModelConflict: another model is being loaded, or the name belongs to a model of another task.
            ModelRejected: the checkpoint cannot serve; says why. The old model keeps serving.
            ServiceError: the service is not ready.
        """
        self._service.pipeline.check_ready()
        return await self._load(path, self._allowed(path), name)

    async def reload(self, model: Model) -> Swap:
        """Reload a served model from its folder, which need not be below a root.

        Raises:
            ModelConflict: as in `load`, or the model has been swapped or unloaded meanwhile.
            ModelRejected: as in `load`.
            ServiceError: the service is not ready.
        """
        self._service.pipeline.check_ready()
        folder = model.checkpoint.path
        return await self._load(str(folder), folder, model.name, replaces=model)

    async def _load(self, path: str, folder: Path, name: str | None, replaces: Model | None = None) -> Swap:
        if self._loading is not None:
            raise ModelConflict(f"{self._loading} is being loaded; wait until that is over")
        self._loading = path
        try:
            model, engines = await self._in_thread(lambda: self._prepare(folder, name))
            self._service.pipeline.check_ready()
            if replaces is not None and self.registry.models.get(replaces.name) is not replaces:
                raise ModelConflict(f"{replaces.name} has been swapped or unloaded meanwhile")
            return Swap(model, self._commit(model, engines))
        except Exception as error:
            # the frames refer to what was loaded so far, and the error is in a reference cycle with the thread's own
            traceback.clear_frames(error.__traceback__)
            log.warning("%s is not loaded: %s", path, error)
            if isinstance(error, Q8Error | OSError):
                raise ModelRejected(str(error)) from None
            raise
        finally:
            self._loading = None

    def unload(self, name: str) -> Model:
        """Give a model no more requests, and free its memory after its last one.

        Raises:
            UnknownModel: no model has this name.
            ModelConflict: it answers again what another one is not sure of.
        """
        registry = self._service.registry
        known = registry.models.get(name)
        if known is not None:
            users = self._service.cascade.users(known)
            if users:
                raise ModelConflict(
                    f"{name!r} answers again what {', '.join(users)} is not sure of (--cascade); unload that first"
                )
            self._service.hide(known)
        return registry.remove(name)

    def join(self, timeout: float | None = None) -> bool:
        """Wait for a running load, which a drain stops at its next step; return False if it is still running.

        The interpreter must not exit while a thread computes.
        """
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()

    def _allowed(self, path: str) -> Path:
        """Return the folder at a path below a root, with symbolic links resolved."""
        if not self._roots:
            raise PathNotAllowed("no folder is allowed; name those that models may be loaded from with --model-root")
        inside = [
            found
            for root in self._roots
            if (found := Path(os.path.realpath(root / path))).is_relative_to(root) and found != root
        ]
        if not inside:
            raise PathNotAllowed(f"{path} is not below {', '.join(map(str, self._roots))} (--model-root)")
        folders = [found for found in inside if os.path.isdir(found)]
        if not folders:
            raise ModelRejected(f"{path} is not a folder; a checkpoint is a folder with config.json and weights")
        return folders[0]

    def _prepare(self, folder: Path, name: str | None) -> tuple[Model, dict[Lane, Engine]]:
        model = open_model(folder, name, self._service.registry.max_length)
        known = self._service.registry.models.get(model.name)
        if known is not None and known.task != model.task:
            raise ModelConflict(
                f"{model.name!r} is a model for {known.task}, {folder.name} one for {model.task}; choose another name"
            )
        engines = self._service.registry.load_model(model, self._service.pipeline.check_ready)
        if folder_state(folder) != model.folder_state:
            raise ModelRejected(f"the files of {folder.name} have changed while they were read; load it again")
        return model, engines

    def _commit(self, model: Model, engines: dict[Lane, Engine]) -> Model | None:
        """Route new requests to a loaded model; runs on the event loop without awaiting anything."""
        service = self._service
        old = service.registry.models.get(model.name)
        if old is not None:
            service.hide(old)
        service.attach(model, engines)
        service.show(model)
        service.registry.put(model)
        log.info("%s (%s) serves%s", model.name, model.revision, f" instead of {old.revision}" if old else "")
        return old

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run on a new thread, whose OpenMP threads end with it."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # the caller may be cancelled; the thread goes on

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        self._thread = threading.Thread(target=run, name="q8bert-load", daemon=True)
        self._thread.start()
        return await asyncio.wrap_future(future)
