"""Metrics of several worker processes in one scrape: the worker that is scraped asks the others.

Every process of a service listens on a Unix socket in a folder that only its user can enter, and writes its samples to
whoever connects. Samples of workers get the label ``worker``: a restarted worker starts from zero again, which
Prometheus' `rate` handles in a single series, but not in a sum. prometheus_client's multiprocess mode is not used
because it has no gauges that are read at scrape time, and counts dead processes for ever.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from q8core.errors import InputError

log = logging.getLogger(__name__)

WORKER_LABEL = "worker"
PATIENCE_S = 1.0
"""How long the others may take to answer; a process that hangs is left out of the scrape."""


@dataclass(frozen=True)
class Place:
    """The identity of a worker among several.

    Attributes:
        number: from 0; a restarted worker has its predecessor's.
        count: how many workers there are.
        folder: the folder of the sockets.
    """

    number: int
    count: int
    folder: Path

    @property
    def socket(self) -> Path:
        """The path of this worker's socket."""
        return worker_socket(self.folder, self.number)


def worker_socket(folder: Path, number: int) -> Path:
    """Return the path of a worker's socket."""
    return folder / f"worker-{number}"


def supervisor_socket(folder: Path) -> Path:
    """Return the path of the supervisor's socket."""
    return folder / "supervisor"


class SampleSocket:
    """Sends the samples of a collector to whoever connects, from a thread of its own.

    Args:
        path: path of the Unix socket; one left by a dead predecessor is replaced.
        source: the collector.

    Raises:
        InputError: the path is too long for a socket, or its folder cannot be written.
    """

    def __init__(self, path: Path, source: Collector) -> None:
        self._source = source
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.unlink(missing_ok=True)
            self._socket.bind(str(path))
        except OSError as error:
            self._socket.close()
            raise InputError(
                f"cannot make the socket {path} for metrics of several workers: {error}; set TMPDIR to a short "
                "path that can be written, or serve with --workers 1"
            ) from error
        self._socket.listen()
        threading.Thread(target=self._serve, name="q8bert-samples", daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        with contextlib.suppress(OSError):  # wakes the thread; fails if it has stopped already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                return
            with connection, contextlib.suppress(OSError):  # the other side has disconnected
                connection.settimeout(PATIENCE_S)
                connection.sendall(_dump(self._source.collect()))


class MergedMetrics(Collector):
    """The samples of this worker, the other workers, and the supervisor.

    Args:
        own: this worker's.
        place: which worker this is.
    """

    def __init__(self, own: Collector, place: Place) -> None:
        self._own = own
        self._place = place

    def collect(self) -> Iterable[Metric]:
        """Ask all processes at once; those that do not answer in time are missing."""
        place = self._place
        others = [number for number in range(place.count) if number != place.number]
        paths = [*(worker_socket(place.folder, number) for number in others), supervisor_socket(place.folder)]
        with ThreadPoolExecutor(len(paths)) as pool:
            *answers, supervisor = pool.map(ask, paths)
        found = {number: families for number, families in zip(others, answers, strict=True) if families is not None}
        found[place.number] = list(self._own.collect())
        merged: dict[str, Metric] = {}
        for number in sorted(found):
            _merge(merged, found[number], {WORKER_LABEL: str(number)})
        _merge(merged, supervisor or [], {})
        return merged.values()


def ask(path: Path) -> list[Metric] | None:
    """Read the samples of another process; None if it is dead, starting, or too slow."""
    end = time.monotonic() + PATIENCE_S
    parts: list[bytes] = []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PATIENCE_S)
            connection.connect(str(path))
            while part := connection.recv(1 << 16):
                parts.append(part)
                connection.settimeout(max(0.001, end - time.monotonic()))
        return list(_load(b"".join(parts)))
    except (FileNotFoundError, ConnectionRefusedError):  # not started yet, or dead: the supervisor logs that
        return None
    except (OSError, ValueError) as error:
        log.warning("no metrics from %s: %s", path.name, error)
        return None


def _merge(merged: dict[str, Metric], families: Sequence[Metric], labels: dict[str, str]) -> None:
    for family in families:
        whole = merged.get(family.name)
        if whole is None:
            whole = merged[family.name] = Metric(family.name, family.documentation, family.type, family.unit)
        whole.samples += [sample._replace(labels={**sample.labels, **labels}) for sample in family.samples]


def _dump(families: Iterable[Metric]) -> bytes:
    return json.dumps(
        [
            [f.name, f.documentation, f.type, f.unit, [[s.name, dict(s.labels), s.value] for s in f.samples]]
            for f in families
        ]
    ).encode()


def _load(content: bytes) -> Iterator[Metric]:
    for name, documentation, kind, unit, samples in json.loads(content):
        family = Metric(name, documentation, kind, unit)
        family.samples = [Sample(*sample) for sample in samples]
        yield family
