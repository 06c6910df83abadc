"""Packed weights between real processes: loading at the same time, and what a second process adds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from q8core.cache import CACHE_VARIABLE
from tests.engines.random_checkpoint import write_random

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    return write_random(tmp_path_factory.mktemp("shared") / "tiny", **sizes)


@pytest.fixture(scope="module")
def middling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers of BERT-base: 30 MB, beside which what a process allocates anyway is small."""
    return write_random(tmp_path_factory.mktemp("shared") / "middling", num_hidden_layers=4)


class Loading:
    """A loading process, seen from its parent."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def wait(self) -> None:
        assert self._line() == "ready\n"

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def found(self) -> dict[str, Any]:
        return json.loads(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@contextmanager
def loading(tiny: Path, folder: Path, cache: Path) -> Iterator[Loading]:
    command = [sys.executable, "-m", "tests.engines.loading_process", str(tiny), str(folder)]
    environment = {**os.environ, CACHE_VARIABLE: str(cache)}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield Loading(process)
        finally:
            process.kill()


def test_two_first_loads_at_the_same_time_both_succeed(tiny: Path, middling: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with ExitStack() as stack:
        both = [stack.enter_context(loading(tiny, middling, cache)) for _ in range(2)]
        for process in both:
            process.wait()
        for process in both:
            process.go()
        first, second = (process.found() for process in both)
    assert first["memory"] == second["memory"] == "shared"
    assert first["logits"] == second["logits"]
    assert sorted(path.suffix for path in cache.iterdir()) == [".packed", ".packed"]  # tiny's and the other's


def test_a_second_process_adds_little(tiny: Path, middling: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        found = []
        for cache in (tmp_path / "cache", tmp_path / "cache", Path(os.devnull) / "no folder"):
            process = stack.enter_context(loading(tiny, middling, cache))
            process.wait()
            process.go()
            found.append(process.found())  # it keeps the weights while the next one loads
        first, second, private = found
    assert [each["memory"] for each in found] == ["shared", "shared", "private"]
    assert "packed by this load" in first["note"]
    assert "packed by an earlier load" in second["note"]
    assert first["logits"] == second["logits"] == private["logits"]
    assert second["added"] < 0.15 * second["weights"]
    assert private["added"] > 0.9 * private["weights"]  # or the measure would prove nothing
