"""One worker process: a complete service that accepts from the supervisor's socket, and exits with the supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from fastapi import FastAPI

from q8core.cpus import available_cpus
from q8core.errors import EngineError, Q8Error
from service.core import Service
from service.hosts.single import DrainingServer, run_server, server_config
from service.hosts.tuning import FullCollections, tune_process
from service.http.app import create_app
from service.lifecycle import State
from service.models.registry import ModelRegistry
from service.settings import Settings
from service.telemetry.exchange import Place, SampleSocket
from service.telemetry.logs import configure_logging

log = logging.getLogger(__name__)

_UNSETTLED = (State.STARTING, State.WARMING)


def run_worker(
    settings: Settings, place: Place, listener: socket.socket, ready: Connection, others_serve: bool
) -> None:
    """Serve until the supervisor says stop, and exit with the code that ``q8bert serve`` would.

    Args:
        settings: as the command line gave them.
        place: which worker this is.
        listener: the socket that all workers accept from.
        ready: receives one message when this worker is ready.
        others_serve: accept nothing before this worker is ready, because other workers answer until then.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the supervisor forwards it
    configure_logging(settings.log_level, json_lines=settings.json_logs, worker=place.number)
    try:
        _run(settings, place, listener, ready, others_serve)
    except Q8Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _run(settings: Settings, place: Place, listener: socket.socket, ready: Connection, others_serve: bool) -> None:
    threads = settings.threads or max(1, available_cpus() // place.count)
    settings = settings.model_copy(update={"threads": threads})
    registry = ModelRegistry.from_settings(settings)
    collections = tune_process()
    app = create_app(settings, registry, place=place, warmed=collections.take_over)
    service: Service = app.state.service
    samples = SampleSocket(place.socket, service.metrics.registry)
    server = WorkerServer(app, ready, collections)
    if others_serve:
        _accept_when_ready(app, service, server)
    try:
        run_server(app, listener, server)
    finally:
        samples.close()


class WorkerServer(DrainingServer):
    """Drains when the supervisor says so or has died; exits at once if the engine hangs, to be restarted."""

    def __init__(self, app: FastAPI, ready: Connection, collections: FullCollections) -> None:
        super().__init__(server_config(app), app.state.service, collections)
        self._ready: Connection | None = ready
        self._supervisor = os.getppid()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle only SIGTERM, and until the process ends: the supervisor may send one while it already exits."""
        signal.signal(signal.SIGTERM, self.handle_exit)
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; ignore further signals, because systemd and others signal every process of a service."""
        if not self.drain_requested:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Report readiness, and check on the supervisor and the engine."""
        if self._ready is not None and self._service.lifecycle.state is State.READY:
            with contextlib.suppress(BrokenPipeError):  # the supervisor has died: see below
                self._ready.send(True)
            self._ready.close()
            self._ready = None
        if os.getppid() != self._supervisor and not self.drain_requested:
            log.error("the supervisor is gone; draining")
            self.handle_exit(signal.SIGTERM, None)
        problem = self._service.engine_problem()
        if problem is not None and self._service.lifecycle.state is State.READY:
            log.critical("%s", problem)
            logging.shutdown()
            os._exit(EngineError.exit_code)
        return await super().on_tick(counter)


def _accept_when_ready(app: FastAPI, service: Service, server: WorkerServer) -> None:
    """Make uvicorn, which accepts once the application has started, wait for the engines."""
    start: Any = app.router.lifespan_context

    @asynccontextmanager
    async def start_and_load(of: Any) -> AsyncGenerator[Any]:
        async with start(of) as state:
            while service.lifecycle.state in _UNSETTLED and not server.drain_requested:
                await asyncio.sleep(0.05)
            yield state

    app.router.lifespan_context = start_and_load
