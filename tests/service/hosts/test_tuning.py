"""Full collections happen when nobody waits for them, and still find what there is to find."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Generator
from pathlib import Path

import pytest

from service.hosts import tuning
from service.hosts.tuning import BUSY_S, IDLE_S, FullCollections, start_without_collections, tune_process
from service.http.app import create_app
from service.models.registry import ModelRegistry
from service.settings import Settings
from tests.service.running import running_server


class Cycle:
    """Only a collection frees it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Generator[list[float]]:
    now = [1000.0]
    monkeypatch.setattr(tuning.time, "monotonic", lambda: now[0])
    yield now
    assert gc.get_freeze_count() == 0


def old_garbage() -> weakref.ref[Cycle]:
    """A cycle that has outlived all collections but a full one, and then was let go."""
    cycle = Cycle()
    gc.collect(1)
    gc.collect(1)
    return weakref.ref(cycle)


@pytest.mark.parametrize(("idle", "pause"), [(True, IDLE_S), (False, BUSY_S)])
def test_collects_when_it_is_time(clock: list[float], idle: bool, pause: float) -> None:
    collections = FullCollections()
    collections.take_over()
    try:
        left = old_garbage()
        clock[0] += pause - 0.1
        collections.tick(idle)
        gc.collect(1)
        assert left() is not None
        clock[0] += 0.2
        collections.tick(idle)
        assert left() is None
    finally:
        collections.give_back()


def test_leaves_start_up_alone(clock: list[float]) -> None:
    """With all that is being loaded a full collection takes longest, and there is nothing to free."""
    collections, left = FullCollections(), old_garbage()
    clock[0] += BUSY_S
    collections.tick(True)
    assert left() is not None


@pytest.mark.usefixtures("clock")
def test_python_makes_no_full_collection_meanwhile() -> None:
    full: list[dict[str, int]] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 2:
            full.append(info)

    def grow() -> int:
        before = len(full)
        kept = [[[]] for _ in range(200_000)]
        assert kept
        return len(full) - before

    gc.callbacks.append(note)
    collections = FullCollections()
    try:
        assert grow() > 0, "the test makes too few objects to notice anything"
        collections.take_over()
        assert grow() == 0
        collections.give_back()
        assert grow() > 0
    finally:
        collections.give_back()
        gc.callbacks.remove(note)


@pytest.mark.usefixtures("clock")
def test_what_exists_is_left_out_until_it_is_given_back() -> None:
    before, collections = gc.get_threshold(), FullCollections()
    collections.take_over()
    assert gc.get_freeze_count() > 10_000
    collections.give_back()
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == before


@pytest.mark.usefixtures("clock")
def test_a_start_without_collections_ends_with_it() -> None:
    collections = FullCollections()
    try:
        start_without_collections()
        assert not gc.isenabled()
        collections.take_over()
        assert gc.isenabled()
    finally:
        gc.enable()
        collections.give_back()


def test_a_tuned_process_hands_the_gil_on_sooner() -> None:
    before = sys.getswitchinterval()
    try:
        tune_process()
        assert sys.getswitchinterval() < 0.001
        assert gc.get_freeze_count() == 0, "nothing is loaded yet"
    finally:
        sys.setswitchinterval(before)


def test_a_server_takes_over_until_it_ends(classify_folder: Path) -> None:
    registry = ModelRegistry.open([classify_folder], ("int8",), threads=1)
    settings, collections = Settings(threads=1, backends=("int8",)), FullCollections()
    with running_server(create_app(settings, registry, warmed=collections.take_over), collections):
        assert gc.get_freeze_count() > 10_000
    assert gc.get_freeze_count() == 0
