"""A real server: uvicorn on a free loopback port in a thread, or the whole command in a subprocess."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastapi import FastAPI

from q8core.cache import CACHE_VARIABLE
from service.core import Service
from service.hosts.listener import bind
from service.hosts.single import DrainingServer, server_config
from service.hosts.tuning import FullCollections
from service.lifecycle import State
from service.settings import Settings


@contextmanager
def running_server(app: FastAPI, collections: FullCollections | None = None) -> Iterator[str]:
    """Serve the app from a thread and yield its address; at the end it gets what a SIGTERM would give it."""
    service: Service = app.state.service
    server = DrainingServer(server_config(app), service, collections or FullCollections())
    with bind(Settings(port=0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            wait_until(lambda: answers(f"{url}/readyz") or not thread.is_alive())
            assert service.lifecycle.state is State.READY, service.lifecycle.failure
            yield url
        finally:
            server.handle_exit(signal.SIGTERM, None)
            thread.join(240)
            assert not thread.is_alive()
            assert not service.worker.is_alive()


def answers(url: str) -> bool:
    # urllib, because it is polled: an httpx client reads a certificate store each time it is made
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status == 200
    except OSError:  # refused, or an error status
        return False


def wait_until(condition: object, seconds: float = 240) -> None:
    """Poll; the bound is only there so that a broken build ends."""
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def start_command(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Start ``q8bert serve`` as a user would."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith("Q8BERT_") or name == CACHE_VARIABLE
    }
    return subprocess.Popen(
        [sys.executable, "-m", "service", "serve", *map(str, arguments)],
        env={**clean, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
