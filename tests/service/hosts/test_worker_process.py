"""What a worker process does on its own: leaves where its engine hangs, drains once, follows its supervisor."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path

import pytest

from q8core.errors import EngineError
from service.core import Service
from service.hosts.tuning import FullCollections
from service.hosts.workers.worker import WorkerServer
from service.http.app import create_app
from service.lifecycle import State
from service.settings import Settings
from tests.service.conftest import open_registry


class Left(BaseException):
    """Instead of the end of the process."""


@pytest.fixture
def server(classify_folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[WorkerServer, Service]:
    def leave(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(os, "_exit", leave)
    app = create_app(Settings(threads=1), open_registry(classify_folder))
    _, theirs = Pipe(duplex=False)
    return WorkerServer(app, theirs, FullCollections()), app.state.service


def tick(server: WorkerServer) -> Callable[[], bool]:
    return lambda: asyncio.run(server.on_tick(1))


def test_a_hanging_engine_ends_the_process(
    server: tuple[WorkerServer, Service], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    process, service = server
    tick(process)()
    for state in (State.WARMING, State.READY):
        service.lifecycle.advance(state)
    monkeypatch.setattr(service, "engine_problem", lambda: "one batch has been computing for ever")
    with pytest.raises(Left) as left:
        tick(process)()
    assert left.value.args == (EngineError.exit_code,)
    assert "one batch has been computing for ever" in caplog.text


def test_two_signals_are_one(server: tuple[WorkerServer, Service]) -> None:
    process, _ = server
    process.handle_exit(signal.SIGTERM, None)
    process.handle_exit(signal.SIGTERM, None)
    assert process.drain_requested
    assert not process.force_exit


def test_an_orphan_drains(server: tuple[WorkerServer, Service], monkeypatch: pytest.MonkeyPatch) -> None:
    process, service = server
    tick(process)()
    assert not process.drain_requested
    monkeypatch.setattr(os, "getppid", lambda: 1)
    tick(process)()
    assert service.lifecycle.state is State.DRAINING


def test_the_supervisor_is_told_once(classify_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(Settings(threads=1), open_registry(classify_folder))
    ours, theirs = Pipe(duplex=False)
    process, service = WorkerServer(app, theirs, FullCollections()), app.state.service
    monkeypatch.setattr(service, "engine_problem", lambda: None)
    tick(process)()
    assert not ours.poll()
    for state in (State.WARMING, State.READY):
        service.lifecycle.advance(state)
    tick(process)()
    tick(process)()
    assert ours.recv() is True
    with pytest.raises(EOFError):
        ours.recv()
