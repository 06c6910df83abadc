"""The supervisor: holds the port and keeps N workers running; it loads no model itself."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics

from q8core.errors import EngineError
from service.settings import Settings
from service.telemetry.exchange import Place, SampleSocket, supervisor_socket

log = logging.getLogger(__name__)

_TICK_S = 0.2
_LONG_ENOUGH_S = 60.0
"""If a worker dies after serving this long, it does not count as failing to start."""
_LONGEST_PAUSE_S = 30.0
_GIVE_UP_AFTER = 5
# on top of the time limit of the last accepted request: for connections, and for the interpreter to exit
_EXIT_GRACE_S = 10.0
# A signal that is sent to a process and to its group arrives twice.
_SAME_SIGNAL_S = 1.0


@dataclass
class _Slot:
    """One of the N workers; its process changes with each restart."""

    place: Place
    process: SpawnProcess | None = None
    news: Connection | None = None
    started: float = 0.0
    ready: bool = False
    failures: int = 0
    """Consecutive deaths."""
    start_at: float | None = None
    """When to restart it; None: not before the first worker is ready."""


class SupervisorMetrics:
    """Metrics that the supervisor adds to those of its workers.

    Args:
        wanted: how many workers there should be.
        ready: returns how many take requests.
    """

    def __init__(self, wanted: int, ready: Callable[[], int]) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry()
        Gauge("q8bert_workers", "Worker processes wanted.", registry=self.registry).set(wanted)
        now = Gauge("q8bert_workers_ready", "Worker processes that take requests.", registry=self.registry)
        now.set_function(lambda: float(ready()))
        self.restarts = Counter("q8bert_worker_restarts", "Worker processes started anew.", registry=self.registry)


class Supervisor:
    """Starts one worker, and the others once it is ready; restarts workers that die; forwards shutdown.

    The first worker measures kernels with the machine to itself and packs the weights; the others map them.

    Args:
        settings: the workers' settings; ``workers`` says how many.
        listener: the bound socket.
        folder: for the sockets by which workers exchange metrics.
    """

    def __init__(self, settings: Settings, listener: socket.socket, folder: Path) -> None:
        self._settings = settings
        self._listener = listener
        self._slots = [_Slot(Place(number, settings.workers, folder)) for number in range(settings.workers)]
        self._context = multiprocessing.get_context("spawn")
        self._signals = 0
        self._signalled = 0.0
        self._once_ready = False
        self._metrics = SupervisorMetrics(settings.workers, lambda: sum(slot.ready for slot in self._slots))
        self._samples = SampleSocket(supervisor_socket(folder), self._metrics.registry)

    def run(self) -> int:
        """Run until a signal or until no worker can be kept running; return the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note_signal)
        code: int | None = None
        self._slots[0].start_at = 0.0
        while code is None and not self._signals:
            self._start_due()
            self._wait()
            code = self._look()
        stopped = self._stop()
        self._samples.close()
        return stopped if code is None else code

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._signalled > _SAME_SIGNAL_S:
            self._signals += 1
        self._signalled = now

    def _start_due(self) -> None:
        now = time.monotonic()
        someone_ready = any(slot.ready for slot in self._slots)
        for slot in self._slots:
            due = now >= slot.start_at if slot.start_at is not None else someone_ready
            if slot.process is None and due:
                self._start(slot, others_serve=someone_ready)

    def _start(self, slot: _Slot, *, others_serve: bool) -> None:
        slot.news, theirs = self._context.Pipe(duplex=False)
        slot.process = self._context.Process(
            target=_work,
            args=(self._settings, slot.place, self._listener, theirs, others_serve),
            name=f"worker-{slot.place.number}",
        )
        slot.started, slot.ready = time.monotonic(), False
        slot.process.start()
        theirs.close()

    def _wait(self) -> None:
        """Wait until a worker dies or becomes ready, at most until the next tick."""
        dying = [slot.process.sentinel for slot in self._slots if slot.process is not None]
        news = [slot.news for slot in self._slots if slot.news is not None]
        wait([*dying, *news], _TICK_S)

    def _look(self) -> int | None:
        """Note which workers became ready or died; return an exit code if there is no use in going on."""
        for slot in self._slots:
            if slot.news is not None and slot.news.poll():
                with contextlib.suppress(EOFError):  # it died before it was ready
                    slot.ready = self._once_ready = bool(slot.news.recv())
                slot.news.close()
                slot.news = None
            if slot.process is not None and slot.process.exitcode is not None:
                code = self._bury(slot, slot.process.exitcode)
                if code is not None:
                    return code
        return None

    def _bury(self, slot: _Slot, code: int) -> int | None:
        """Schedule the restart of a dead worker; return an exit code if it should not be restarted."""
        lived, slot.ready, slot.process = time.monotonic() - slot.started, False, None
        if not self._once_ready:
            return _exit_code(code) or EngineError.exit_code  # the very first start failed; its own log says why
        slot.failures = 1 if lived > _LONG_ENOUGH_S else slot.failures + 1
        if all(other.failures >= _GIVE_UP_AFTER and other.process is None for other in self._slots):
            log.error("no worker can be kept running")
            return _exit_code(code) or EngineError.exit_code
        pause = min(_LONGEST_PAUSE_S, 2.0 ** (slot.failures - 1) - 1)
        slot.start_at = time.monotonic() + pause
        self._metrics.restarts.inc()
        log.error("worker %d has died with code %d; a new one in %.0f s", slot.place.number, code, pause)
        return None

    def _stop(self) -> int:
        """Let every worker answer what it has accepted; return 0 if all have, else an exit code."""
        log.info("stopping %d workers", sum(slot.process is not None for slot in self._slots))
        end = time.monotonic() + self._settings.request_timeout_s + _EXIT_GRACE_S
        codes: list[int] = []
        for slot in self._slots:
            if slot.process is not None:
                slot.process.terminate()
        while any(slot.process is not None for slot in self._slots):
            if time.monotonic() > end or self._signals > 1:
                log.error("workers did not stop in time" if time.monotonic() > end else "stopped at once")
                self._kill_all()
                return EngineError.exit_code
            self._wait()
            for slot in self._slots:
                if slot.process is not None and slot.process.exitcode is not None:
                    codes.append(_meaning(slot.process.exitcode, slot.ready))
                    slot.process, slot.ready = None, False
        return next((code for code in codes if code), 0)

    def _kill_all(self) -> None:
        for slot in self._slots:
            if slot.process is not None:
                slot.process.kill()
                slot.process.join()


def _work(settings: Settings, place: Place, listener: socket.socket, ready: Connection, others_serve: bool) -> None:
    """What a worker process runs; the import brings the engines, which the supervisor does without."""
    from service.hosts.workers.worker import run_worker

    run_worker(settings, place, listener, ready, others_serve)


def _meaning(code: int, was_ready: bool) -> int:
    """Return an exit code's meaning: a worker killed by SIGTERM before it handles signals had accepted nothing."""
    return 0 if code == -signal.SIGTERM and not was_ready else _exit_code(code)


def _exit_code(code: int) -> int:
    """Return the exit code of a process; negative codes are signals, which have none."""
    return code if code >= 0 else EngineError.exit_code


def serve_with_workers(settings: Settings, listener: socket.socket) -> None:
    """Serve with several worker processes until a signal or a failure, and exit."""
    with tempfile.TemporaryDirectory(prefix="q8bert-") as folder:
        host, port = listener.getsockname()[:2]
        log.info("%d workers behind %s port %d", settings.workers, host, port)
        code = Supervisor(settings, listener, Path(folder)).run()
    sys.exit(code)
