from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from q8core.engines.choice import busy, timing
from q8core.engines.choice.busy import ForeignTime
from q8core.engines.choice.timing import measure_layer
from q8core.quant import Plan
from tests.engines.conftest import Simulated


class Spinning:
    """A model that computes for a while."""

    def __init__(self, milliseconds: float) -> None:
        self.seconds = milliseconds / 1e3

    def load(self, plan: Plan, source: object) -> Spinning:
        return self

    def logits(self, batch: object, threads: object) -> None:
        end = time.thread_time() + self.seconds
        while time.thread_time() < end:
            pass


def test_own_work_is_not_foreign(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Busy time of this process's CPUs only, less its own; stolen time counts, guests' only once."""
    mine = sorted(os.sched_getaffinity(0))
    stat = tmp_path / "stat"

    def write(busy_ticks: int, stolen: int) -> None:
        rows = [f"cpu{number} {busy_ticks} 0 0 500 100 0 0 {stolen} 7 0" for number in mine]
        stat.write_text("\n".join(["cpu 1 1 1 1", *rows, "cpu9999 100000 0 0 0 0 0 0 0 0 0", "intr 5"]) + "\n")

    clock = iter((10.0, 11.0))
    own = iter((2.0, 2.5))
    monkeypatch.setattr(busy, "_STAT", stat)
    monkeypatch.setattr(busy.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(busy.time, "process_time", lambda: next(own))
    tick = os.sysconf("SC_CLK_TCK")
    write(0, 0)
    foreign = ForeignTime()
    write(tick // 2, tick // 4)
    assert foreign.share() == pytest.approx((0.75 * len(mine) - 0.5) / len(mine))


def test_a_system_that_does_not_tell_counts_as_quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(busy, "_STAT", tmp_path / "none")
    assert ForeignTime().share() == 0.0


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the system does not tell CPU time")
def test_a_busy_neighbour_is_noticed_and_does_not_turn_the_order(
    classifier: Simulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "RandomInt8", lambda plan: {})
    kernels = {"slow": Spinning(3), "quick": Spinning(1)}
    spin = [sys.executable, "-c", "while True: pass"]
    neighbours = [subprocess.Popen(spin) for _ in os.sched_getaffinity(0)]
    try:
        time.sleep(0.1)
        found = measure_layer(kernels, classifier.plan)  # pyright: ignore[reportArgumentType]
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()
    assert found.disturbed
    assert found.quickest == "quick"
