"""One scrape of several processes: every sample once, with its worker; the dead and the slow left out."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from q8core.errors import InputError
from service.queueing.batcher import Lane
from service.telemetry.exchange import MergedMetrics, Place, SampleSocket, ask, supervisor_socket, worker_socket
from service.telemetry.metrics import create_metrics


def make_registry(requests: int, waiting: float) -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("things", "Things.", ("kind",), registry=registry).labels('odd "\\\n').inc(requests)
    Gauge("waiting", "Waiting.", registry=registry).set_function(lambda: waiting)
    Histogram("seconds", "Time.", buckets=(1, 2), registry=registry).observe(1.5)
    return registry


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                key = (sample.name, tuple(sorted(sample.labels.items())))
                assert key not in found, f"{key} twice"
                found[key] = sample.value
    return found


@pytest.fixture
def sockets() -> Iterator[list[SampleSocket]]:
    opened: list[SampleSocket] = []
    yield opened
    for one in opened:
        one.close()


def test_whoever_answers_tells_of_all(tmp_path: Path, sockets: list[SampleSocket]) -> None:
    registries = [make_registry(10 + n, 0.5 * n) for n in range(3)]
    supervisor = CollectorRegistry()
    Gauge("workers", "Workers.", registry=supervisor).set(3)
    sockets += [SampleSocket(worker_socket(tmp_path, n), registry) for n, registry in enumerate(registries)]
    sockets.append(SampleSocket(supervisor_socket(tmp_path), supervisor))
    scrapes = [samples(generate_latest(MergedMetrics(r, Place(n, 3, tmp_path)))) for n, r in enumerate(registries)]
    assert scrapes[0] == scrapes[1] == scrapes[2]
    for number, registry in enumerate(registries):
        for (name, labels), value in samples(generate_latest(registry)).items():
            assert scrapes[0][name, tuple(sorted((*labels, ("worker", str(number)))))] == value
    assert scrapes[0]["workers", ()] == 3
    assert len(scrapes[0]) == 3 * len(samples(generate_latest(registries[0]))) + 1


def test_the_services_own_metrics_arrive_whole(tmp_path: Path, sockets: list[SampleSocket]) -> None:
    metrics = create_metrics([Lane("qa", "int8")])
    metrics.engines.selftest.labels("qa", "int8", "tiny").set(math.nan)
    sockets.append(SampleSocket(worker_socket(tmp_path, 0), metrics.registry))
    (answer, own) = (ask(worker_socket(tmp_path, 0)), list(metrics.registry.collect()))
    assert answer is not None
    assert [(f.name, f.type, f.documentation, len(f.samples)) for f in answer] == [
        (f.name, f.type, f.documentation, len(f.samples)) for f in own
    ]


def test_the_dead_are_left_out(tmp_path: Path, sockets: list[SampleSocket]) -> None:
    registries = [make_registry(10, 0), make_registry(20, 0)]
    sockets += [SampleSocket(worker_socket(tmp_path, n), registry) for n, registry in enumerate(registries)]
    merged = MergedMetrics(registries[0], Place(0, 3, tmp_path))
    assert {dict(labels)["worker"] for _, labels in samples(generate_latest(merged))} == {"0", "1"}
    sockets.pop().close()
    assert {dict(labels)["worker"] for _, labels in samples(generate_latest(merged))} == {"0"}


def test_one_that_hangs_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.telemetry.exchange.PATIENCE_S", 0.05)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(worker_socket(tmp_path, 1)))
        silent.listen()
        merged = MergedMetrics(make_registry(10, 0), Place(0, 2, tmp_path))
        assert {dict(labels)["worker"] for _, labels in samples(generate_latest(merged))} == {"0"}
    assert "no metrics from worker-1" in caplog.text


def test_half_an_answer_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import threading

    with socket.socket(socket.AF_UNIX) as liar:
        liar.bind(str(worker_socket(tmp_path, 1)))
        liar.listen()

        def lie() -> None:
            connection, _ = liar.accept()
            with connection:
                connection.sendall(b'[["things", ')

        thread = threading.Thread(target=lie)
        thread.start()
        assert ask(worker_socket(tmp_path, 1)) is None
        thread.join()
    assert "no metrics from worker-1" in caplog.text


def test_a_successor_takes_the_place(tmp_path: Path, sockets: list[SampleSocket]) -> None:
    path = worker_socket(tmp_path, 0)
    SampleSocket(path, make_registry(1, 0)).close()
    assert ask(path) is None
    sockets.append(SampleSocket(path, make_registry(2, 0)))
    assert ask(path) is not None


def test_a_folder_that_is_no_use_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--workers 1"):
        SampleSocket(tmp_path / "missing" / "worker-0", CollectorRegistry())
    with pytest.raises(InputError, match="TMPDIR"):
        SampleSocket(tmp_path / ("long" * 40), CollectorRegistry())
