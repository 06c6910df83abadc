"""No request pays for an import: what answers is loaded before the service says that it is ready."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# in a process of its own, because this one has imported more than a server would have
SERVE = """
import sys
from pathlib import Path

import httpx2

from service.http.app import create_app
from service.settings import Settings
from tests.service.conftest import open_registry
from tests.service.running import running_server

folders = [Path(name) for name in sys.argv[1:]]
texts = {"inputs": ["good"] * 300}
question = {"inputs": {"question": "who?", "context": "me"}}
with running_server(create_app(Settings(threads=1), open_registry(*folders))) as url, httpx2.Client() as client:
    assert client.get(url + "/livez").status_code == 200  # the client's own imports
    ready = set(sys.modules)
    for path, body in {"/classify": texts, "/qa": question, "/compare": {"inputs": "good"}, "/predict": {}}.items():
        client.post(url + path, json=body)
    for path in ("/", "/docs", "/openapi.json", "/metrics", "/info", "/agreement", "/page/icon.svg", "/v2", "/none"):
        client.get(url + path)
    print(*sorted(set(sys.modules) - ready))
"""


def test_requests_import_nothing(classify_folder: Path, qa_folder: Path) -> None:
    command = [sys.executable, "-c", SERVE, str(classify_folder), str(qa_folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
