"""Runs the application under uvicorn in this process: drains on SIGTERM, exits with a meaning."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Generator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from q8core.errors import EngineError, Q8Error
from service.core import Service
from service.hosts.tuning import FullCollections, tune_process
from service.http.app import create_app
from service.http.protocol import ConnectionLimits, GuardedProtocol, guarded
from service.lifecycle import State
from service.models.registry import ModelRegistry
from service.settings import Settings

log = logging.getLogger(__name__)

# How long the last answers may take to leave through slow connections, and requests that have begun to arrive.
_CONNECTION_GRACE_S = 5


class DrainingServer(uvicorn.Server):
    """Keeps listening while accepted requests are answered, so that probes see the drain, and exits with code 0.

    uvicorn by itself closes its listeners at once and then dies of the signal it was sent.

    Args:
        config: of `server_config`.
        service: behind the application.
        collections: the process's, which the service takes over once it is warm; given back at the end.
    """

    def __init__(self, config: uvicorn.Config, service: Service, collections: FullCollections) -> None:
        super().__init__(config)
        self._service = service
        self._drain_requested = False
        self._collections = collections

    @property
    def drain_requested(self) -> bool:
        """Whether the end has been asked for."""
        return self._drain_requested

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle SIGINT and SIGTERM without raising them again at the end."""
        if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain on the first signal, leave at once on the second."""
        if self._drain_requested:
            self.should_exit = self.force_exit = True
        self._drain_requested = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: advance the drain, and leave once nothing is in flight or the engine has failed."""
        service = self._service
        idle = service.pipeline.in_flight.count() == 0
        self._collections.tick(idle)
        if self._drain_requested:
            service.drain()
            if idle:
                self.should_exit = True
        if service.lifecycle.state is State.FAILED:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the connections, the slow ones after their time, and leave the process as it was."""
        timer = asyncio.get_running_loop().call_later(_CONNECTION_GRACE_S, self._cut_connections)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()
        if self.force_exit:
            self._cut_connections()
            if self.server_state.tasks:
                await asyncio.wait(self.server_state.tasks, timeout=_CONNECTION_GRACE_S)
        self._collections.give_back()

    def _cut_connections(self) -> None:
        """End what is left of them: their tasks learn that the client has left, which uvicorn would cancel instead."""
        left = [connection for connection in self.server_state.connections if isinstance(connection, GuardedProtocol)]
        if not left:
            return
        arriving = sum(connection.request_arrives for connection in left)
        log.warning(
            "cut %d connections: %d requests had not arrived, %d answers had not left",
            *(len(left), arriving, len(left) - arriving),
        )
        for connection in left:
            connection.transport.abort()


def server_config(app: FastAPI) -> uvicorn.Config:
    """Configure uvicorn for the application: our own logging, no web sockets, no second queue."""
    service: Service = app.state.service
    settings = service.settings
    return uvicorn.Config(
        app,
        lifespan="on",
        # uvloop accepts a connection per turn of the loop: under load, clients would wait for that by the second
        loop="asyncio",
        ws="none",
        http=guarded(
            ConnectionLimits(settings.header_limit, settings.header_timeout_s, settings.body_timeout_s),
            app.state.overload,
        ),
        timeout_keep_alive=settings.keep_alive_s,
        log_config=None,
        access_log=False,
        server_header=False,
        # never reached: no connection outlives its own grace
        timeout_graceful_shutdown=2 * _CONNECTION_GRACE_S,
    )


def serve(settings: Settings, registry: ModelRegistry, listener: socket.socket) -> None:
    """Serve as the one process of a service; raises as `run_server`."""
    collections = tune_process()
    app = create_app(settings, registry, warmed=collections.take_over)
    run_server(app, listener, DrainingServer(server_config(app), app.state.service, collections))


def run_server(app: FastAPI, listener: socket.socket, server: DrainingServer) -> None:
    """Serve until a signal or a failure.

    Raises:
        Q8Error: what the start-up failed with, or EngineError when the engine died later.
    """
    service: Service = app.state.service
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    log.info("listening on http://%s:%d, loading %s", shown, port, ", ".join(service.registry.models))
    server.run([listener])
    # both have ended already, unless a second signal cut the first short
    if not (service.stop(_CONNECTION_GRACE_S) and app.state.admin.join(_CONNECTION_GRACE_S)):
        # torch aborts when the interpreter ends under a computing thread
        log.error("a computing thread did not stop in time")
        os._exit(EngineError.exit_code)
    failure = service.lifecycle.failure
    if isinstance(failure, Q8Error):
        raise failure
    if failure is not None:
        raise EngineError(f"the engine thread died: {type(failure).__name__}; the log has the details") from failure
