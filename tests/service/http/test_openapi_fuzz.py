"""Every operation of the OpenAPI document, asked with data made from it: no status, shape or header outside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from service.http.app import create_app
from service.settings import Settings
from tests.service.conftest import open_registry
from tests.service.running import running_server

# what a schema cannot say, such as that two fields exclude each other, is refused though it fits the schema
NOT_CHECKED = "positive_data_acceptance"


def test_no_answer_is_outside_the_document(classify_folder: Path, qa_folder: Path, tmp_path: Path) -> None:
    app = create_app(Settings(threads=1), open_registry(classify_folder, qa_folder))
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run"),
        *("--no-color", "--seed=1", "--max-examples=20", "--phases=examples,coverage,fuzzing"),
        *("--checks=all", f"--exclude-checks={NOT_CHECKED}", "--continue-on-failure"),
    ]
    with running_server(app) as url:
        # from an empty folder: it keeps what it found there
        found = subprocess.run([*command, f"{url}/openapi.json"], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
