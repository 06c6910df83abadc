"""``q8bert serve --workers 2``: one port, right sums, successors for the dead, a clean end for all."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.service.hosts.test_serve_command import finish, flip_a_byte, free_port
from tests.service.running import answers, start_command, wait_until


class Pool:
    """A running command with its workers."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.url = process, f"http://127.0.0.1:{port}"

    def workers(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children()
            return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        return []

    def samples(self, name: str) -> dict[tuple[tuple[str, str], ...], float]:
        # a connection of its own each time, so that each worker gets to answer
        text = httpx.get(f"{self.url}/metrics", timeout=240).text
        return {
            tuple(sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        }

    def ready(self) -> float:
        return sum(self.samples("q8bert_workers_ready").values())

    def all_ready(self) -> bool:
        return answers(f"{self.url}/readyz") and self.ready() == 2


@contextlib.contextmanager
def started(*folders: Path) -> Iterator[Pool]:
    port = free_port()
    arguments = [part for folder in folders for part in ("--checkpoint", folder)]
    process = start_command(*arguments, "--port", str(port), "--workers", "2", "--kernel", "fbgemm")
    pool = Pool(process, port)
    own = psutil.Process(process.pid)
    try:
        wait_until(lambda: process.poll() is not None or pool.all_ready())
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        yield pool
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in own.children(recursive=True):
                child.kill()
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def pool(classify_folder: Path, qa_folder: Path) -> Iterator[Pool]:
    with started(classify_folder, qa_folder) as pool:
        yield pool


def ask(pool: Pool, text: str = "a good film") -> int:
    return httpx.post(f"{pool.url}/classify", json={"inputs": text}, timeout=240).status_code


def test_every_request_is_counted_once_whichever_worker_answered(pool: Pool) -> None:
    def counted() -> float:
        found = pool.samples("q8bert_requests_total")
        assert {dict(labels)["worker"] for labels in found} == {"0", "1"}
        return sum(value for labels, value in found.items() if dict(labels)["task"] == "classify")

    before = counted()
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda _: ask(pool), range(80))) == {200}
    assert {counted() - before for _ in range(6)} == {80}
    assert len(pool.samples("q8bert_ready")) == len(pool.samples("process_resident_memory_bytes")) == 2
    assert pool.samples("q8bert_workers") == {(): 2}


def test_both_workers_answer_and_say_who_they_are(pool: Pool) -> None:
    numbers: set[int] = set()

    def both_seen() -> bool:
        with ThreadPoolExecutor(8) as threads:
            infos = threads.map(lambda _: httpx.get(f"{pool.url}/info", timeout=240).json(), range(16))
            numbers.update(info["worker"] for info in infos)
        return len(numbers) == 2

    wait_until(both_seen)
    info = httpx.get(f"{pool.url}/info").json()
    assert (numbers, info["workers"]) == ({0, 1}, 2)
    # OMP_NUM_THREADS is 1 here; a share is never less
    assert {model["backends"]["int8"]["threads"] for model in info["models"].values()} == {1}


def test_a_killed_worker_gets_a_successor_and_the_other_one_answers(pool: Pool) -> None:
    before = sum(pool.samples("q8bert_worker_restarts_total").values())
    victim = pool.workers()[0]
    others = {worker.pid for worker in pool.workers()} - {victim.pid}
    victim.kill()
    wait_until(lambda: not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE)
    # The one that is left takes every new connection, the successor none before it is ready.
    while True:
        assert ask(pool) == 200
        if sum(pool.samples("q8bert_worker_restarts_total").values()) == before + 1 and pool.ready() == 2:
            break
    assert others < {worker.pid for worker in pool.workers()}


def test_sigterm_lets_all_workers_answer_and_exits_with_0(classify_folder: Path, qa_folder: Path) -> None:
    codes: list[int] = []
    dropped: list[Exception] = []
    stop = threading.Event()
    with started(classify_folder, qa_folder) as pool:
        workers = pool.workers()

        def hammer() -> None:
            with httpx.Client(base_url=pool.url, timeout=240) as client:
                while not stop.is_set():
                    try:
                        body = {"question": "who?", "context": "by ada " * 200}
                        codes.append(client.post("/qa", json=body).status_code)
                    except httpx.ConnectError:
                        return  # the port is closed
                    except httpx.TransportError as error:
                        dropped.append(error)
                        return

        with ThreadPoolExecutor(4) as threads:
            jobs = [threads.submit(hammer) for _ in range(4)]
            wait_until(lambda: len(codes) > 8)
            # as systemd does: to every process of the service
            for one in (psutil.Process(pool.process.pid), *workers):
                one.send_signal(signal.SIGTERM)
            code, _, err = finish(pool.process)
            stop.set()
            for job in jobs:
                job.result()
        assert code == 0, err
        assert not any(worker.is_running() for worker in workers)
    assert set(codes) <= {200, 503}
    # a kept-alive connection that was idle when it was closed may lose the request that was just being sent
    assert all(isinstance(error, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError) for error in dropped)
    assert "Traceback" not in err


def test_workers_end_when_the_supervisor_is_gone(classify_folder: Path) -> None:
    with started(classify_folder) as pool:
        workers = pool.workers()
        assert len(workers) == 2
        os.kill(pool.process.pid, signal.SIGKILL)
        wait_until(lambda: not any(worker.is_running() for worker in workers))


def test_what_the_first_worker_cannot_load_ends_all_with_its_sentence(classify_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(classify_folder, folder)
    flip_a_byte(folder)
    process = start_command("--checkpoint", folder, "--port", "0", "--workers", "2", "--log-level", "error")
    code, _, err = finish(process)
    assert code == 3, err
    assert len(re.findall("^error: .*sha256", err, re.MULTILINE)) == 1
    assert "Traceback" not in err
