"""Watches the folders of the served models, and swaps in new versions as the admin route does.

It polls, because files on network volumes and behind symbolic links send no events. A changed folder is read once two
polls in a row found it the same, so that one that is still being copied is left alone. A checkpoint that cannot serve
is refused, and not read again until it changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.concurrency import run_in_threadpool

from service.errors import ModelConflict, ModelRejected, ServiceError
from service.models.folder_state import FolderState, folder_state
from service.models.model import Model
from service.operations.model_admin import ModelAdmin

log = logging.getLogger(__name__)


class Watcher:
    """Polls the folder of every served model.

    Args:
        admin: swaps the models.
    """

    def __init__(self, admin: ModelAdmin) -> None:
        self._admin = admin
        self._seen: dict[str, FolderState] = {}
        """State of the folders at the last poll, by model's name."""
        self._refused: set[str] = set()
        """Names of models whose folders, in that state, could not serve."""

    async def run(self, interval_s: float) -> None:
        """Poll at this interval, for ever."""
        while True:
            await asyncio.sleep(interval_s)
            await self.look()

    async def look(self) -> None:
        """Poll each folder once; load those that have changed since they were read, but not since the last poll."""
        for model in tuple(self._admin.registry.models.values()):
            await self._look_at(model)

    async def _look_at(self, model: Model) -> None:
        now = await run_in_threadpool(folder_state, model.checkpoint.path)
        last, self._seen[model.name] = self._seen.get(model.name), now
        if now != last:
            self._refused.discard(model.name)
            return
        new = now != model.folder_state and model.name not in self._refused
        # a load by the admin has priority, and may have given the name another folder
        if new and not self._admin.busy and self._serves(model):
            await self._reload(model)

    def _serves(self, model: Model) -> bool:
        return self._admin.registry.models.get(model.name) is model

    async def _reload(self, model: Model) -> None:
        log.info("%s: %s has changed", model.name, model.checkpoint.path)
        try:
            await self._admin.reload(model)
            return
        except (ModelRejected, ModelConflict):  # the reason has been logged
            if not self._serves(model):
                return
        except ServiceError:  # starting or shutting down: the next poll tries again, if there is one
            return
        except Exception:
            log.exception("%s: the new files could not be loaded", model.name)
        self._refused.add(model.name)
        log.warning("%s (%s) goes on, and is read again when its files change", model.name, model.revision)


@asynccontextmanager
async def watching(admin: ModelAdmin, interval_s: float) -> AsyncGenerator[None]:
    """Watch while the block runs; an interval of 0 means never."""
    if not interval_s:
        yield
        return
    task = asyncio.create_task(Watcher(admin).run(interval_s))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
