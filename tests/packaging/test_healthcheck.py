"""The health check as the container runs it: a process, the environment, an exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest


class Probe(BaseHTTPRequestHandler):
    """Answers /readyz with the status that the test has set, everything else with 404."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/readyz" else 404)
        self.end_headers()
        self.wfile.write(b"warming")

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Probe) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run(root: Path, port: int, host: str = "0.0.0.0") -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "Q8BERT_HOST": host,
        "Q8BERT_PORT": str(port),
        "http_proxy": "http://127.0.0.1:9",  # must not be asked
    }
    command = [sys.executable, "-I", str(root / "docker" / "healthcheck.py")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "localhost"])
def test_ready(root: Path, server: HTTPServer, host: str) -> None:
    result = run(root, server.server_port, host)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("status", [404, 500, 503])
def test_not_ready(root: Path, server: HTTPServer, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr(Probe, "status", status)
    result = run(root, server.server_port)
    assert result.returncode == 1
    assert result.stdout.strip() == f"{status} warming"


def test_nothing_listens(root: Path, server: HTTPServer) -> None:
    server.shutdown()
    server.server_close()
    result = run(root, server.server_port)
    assert result.returncode == 1
    assert "no answer from 127.0.0.1" in result.stdout
    assert result.stderr == ""
