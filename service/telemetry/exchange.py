"""Metrics of several worker processes in one scrape: whichever worker is asked, it asks the others.

Every process of a service listens on a Unix socket in a folder that only its user can enter, and writes its samples to
whoever connects. Samples of workers get the label ``worker``: a restarted worker begins at zero again, which
Prometheus' `rate` understands of a series of its own, but not of a sum. prometheus_client's multiprocess mode is not
used because it knows no gauges that are read at scrape time, and adds up the dead for ever.
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
"""How long the others may take to answer; one that hangs is left out of the scrape."""


@dataclass(frozen=True)
class Place:
    """A worker among its siblings.

    Attributes:
        number: from 0 on; a restarted worker takes its predecessor's.
        count: how many workers there are.
        folder: of the sockets.
    """

    number: int
    count: int
    folder: Path

    @property
    def socket(self) -> Path:
        """Where this worker's samples are."""
        return worker_socket(self.folder, self.number)


def worker_socket(folder: Path, number: int) -> Path:
    """Return where a worker's samples are."""
    return folder / f"worker-{number}"


def supervisor_socket(folder: Path) -> Path:
    """Return where the supervisor's samples are."""
    return folder / "supervisor"


class SampleSocket:
    """Answers everyone who connects with the samples of a collector, from a thread of its own.

    Args:
        path: of the Unix socket; what is left there of a dead predecessor is replaced.
        source: the samples.

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
        """Stop to answer."""
        with contextlib.suppress(OSError):  # wakes the thread; fails where nobody waits any more
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                return
            with connection, contextlib.suppress(OSError):  # whoever asked has gone
                connection.settimeout(PATIENCE_S)
                connection.sendall(_dump(self._source.collect()))


class MergedMetrics(Collector):
    """The samples of this worker, of its siblings, and of the supervisor.

    Args:
        own: this worker's.
        place: which worker this is.
    """

    def __init__(self, own: Collector, place: Place) -> None:
        self._own = own
        self._place = place

    def collect(self) -> Iterable[Metric]:
        """Ask everyone at once; who does not answer in time is missing."""
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
    """Read the samples of another process; None where it is dead, starting, or too slow."""
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
    except (FileNotFoundError, ConnectionRefusedError):  # not started yet, or dead: the supervisor tells
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
