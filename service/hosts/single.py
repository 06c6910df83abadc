"""Runs the application under uvicorn in this process: drains on SIGTERM, and exits with a meaningful code."""

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
from service.hosts.tuning import FullCollections
from service.http.app import application
from service.http.protocol import ConnectionLimits, GuardedProtocol, guarded
from service.lifecycle import State

log = logging.getLogger(__name__)

# How long slow connections may take, during shutdown, to read their answers or to finish sending a request.
_CONNECTION_GRACE_S = 5


class DrainingServer(uvicorn.Server):
    """Keeps listening while it answers accepted requests, so that probes see the drain, and exits with code 0.

    uvicorn itself closes its listeners at once, and then raises the signal again, which kills the process.

    Args:
        config: from `server_config`.
        service: the service behind the application.
        collections: controls garbage collection of this process from the end of warm-up until shutdown.
    """

    def __init__(self, config: uvicorn.Config, service: Service, collections: FullCollections) -> None:
        super().__init__(config)
        self._service = service
        self._drain_requested = False
        self._collections = collections

    @property
    def drain_requested(self) -> bool:
        """Whether a shutdown has been requested."""
        return self._drain_requested

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle SIGINT and SIGTERM, without raising them again at the end."""
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
        """Begin to drain on the first signal, exit at once on the second."""
        if self._drain_requested:
            self.should_exit = self.force_exit = True
        self._drain_requested = True

    async def on_tick(self, counter: int) -> bool:
        """Advance the drain, ten times a second; exit once nothing is in flight or the engine has failed."""
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
        """Close the connections, slow ones after their grace period, and restore the process's settings."""
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
        """Close the remaining connections, so that their tasks see a disconnect; uvicorn would cancel the tasks."""
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
    """Configure uvicorn for the application: own logging, no web sockets, no second queue."""
    service: Service = app.state.service
    settings = service.settings
    return uvicorn.Config(
        app,
        lifespan="on",
        # uvloop accepts one connection per iteration: under load, clients would wait for seconds to be accepted
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
        # never reached: connections are closed after their own grace period
        timeout_graceful_shutdown=2 * _CONNECTION_GRACE_S,
    )


def build(service: Service, collections: FullCollections) -> FastAPI:
    """Return the application of a service whose engines load already; raises what `application` raises."""
    app = application(service)
    if service.lifecycle.state is State.READY:
        collections.take_over()  # once more: the application's objects stay, too
    return app


def serve(app: FastAPI, listener: socket.socket, collections: FullCollections) -> None:
    """Serve as the only process of a service; raises what `run_server` raises."""
    run_server(app, listener, DrainingServer(server_config(app), app.state.service, collections))


def run_server(app: FastAPI, listener: socket.socket, server: DrainingServer) -> None:
    """Serve until a signal or a failure.

    Raises:
        Q8Error: the error of the start-up, or EngineError if the engine died later.
    """
    service: Service = app.state.service
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    log.info("listening on http://%s:%d, loading %s", shown, port, ", ".join(service.registry.models))
    server.run([listener])
    # both have stopped already, unless a second signal cut the drain short
    if not (service.stop(_CONNECTION_GRACE_S) and app.state.admin.join(_CONNECTION_GRACE_S)):
        # torch aborts if the interpreter exits while a thread computes
        log.error("a computing thread did not stop in time")
        os._exit(EngineError.exit_code)
    failure = service.lifecycle.failure
    if isinstance(failure, Q8Error):
        raise failure
    if failure is not None:
        raise EngineError(f"the engine thread died: {type(failure).__name__}; the log has the details") from failure
