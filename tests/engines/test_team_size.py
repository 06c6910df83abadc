"""How many threads a batch gets: by its work, and by the CPU time that the threads of earlier batches got."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from q8core.engines import TokenBatch, build_engine
from q8core.engines.choice.random_weights import RandomFloat, RandomInt8
from q8core.engines.loaders.native import SMALL, NativeModel, load_native
from q8core.engines.loaders.native_float import load_native_float
from q8core.engines.loaders.team_size import TeamSize
from q8core.engines.tensors.source import TensorSource
from q8core.quant import Plan
from tests.engines.conftest import plan_for

Shares = Callable[[int], float]


def chosen(team_size: TeamSize, most: int, passes: int, share: Shares, seconds: float = 0.001) -> list[int]:
    """Choose and observe so many times; `share` is what the slowest of so many threads gets."""
    found: list[int] = []
    for _ in range(passes):
        found.append(team_size.choose(most))
        team_size.observe(found[-1], share(found[-1]), seconds)
    return found


def quiet(_: int) -> float:
    return 0.95


def beside_one_process(threads: int) -> float:
    """On two CPUs: one thread has a CPU of its own; one of two takes turns with the other process."""
    return {1: 1.0, 2: 0.5}[threads]


def beside_two_processes(threads: int) -> float:
    """On two CPUs: each thread takes turns with a process."""
    return {1: 0.55, 2: 0.45}[threads]


@pytest.mark.parametrize("most", [1, 2, 6, 16])
def test_with_a_cpu_for_each_thread_all_are_used(most: int) -> None:
    assert set(chosen(TeamSize(), most, 200, quiet)) == {most}


def test_beside_one_process_on_two_cpus_one_thread_is_used_and_two_are_tried_now_and_then() -> None:
    found = chosen(TeamSize(), 2, 330, beside_one_process)
    assert set(found[10:20]) == {1}
    assert 5 <= found[10:].count(2) <= 10


def test_beside_two_processes_on_two_cpus_two_threads_get_more_than_one() -> None:
    found = chosen(TeamSize(), 2, 330, beside_two_processes)
    assert found[30:].count(1) <= 10


def test_a_change_is_noticed() -> None:
    team_size = TeamSize()
    chosen(team_size, 2, 100, beside_two_processes)  # after which little is expected of one thread
    assert chosen(team_size, 2, 200, beside_one_process)[-20:].count(1) >= 19
    assert set(chosen(team_size, 2, 200, quiet)[-20:]) == {2}
    assert chosen(team_size, 2, 200, beside_one_process)[-20:].count(1) >= 19


def test_long_passes_are_soon_computed_by_all_threads_again() -> None:
    team_size = TeamSize()
    assert chosen(team_size, 2, 10, beside_one_process, 0.1)[-1] == 1
    found = chosen(team_size, 2, 10, quiet, 0.1)
    assert set(found[6:]) == {2}, "after half a second and one pass"


def test_one_disturbed_pass_changes_nothing() -> None:
    team_size = TeamSize()
    chosen(team_size, 2, 40, quiet)
    team_size.observe(2, 0.3, 0.001)
    assert set(chosen(team_size, 2, 40, quiet)) == {2}


def test_larger_teams_are_halved_until_all_threads_have_their_cpu() -> None:
    found = chosen(TeamSize(), 8, 330, lambda threads: 0.2 if threads > 3 else 1.0)
    assert set(found) == {8, 4, 2}
    assert found[20:].count(2) >= 290


@given(most=st.integers(1, 40), shares=st.lists(st.floats(0, 1), max_size=100))
def test_whatever_is_observed_the_number_is_allowed(most: int, shares: list[float]) -> None:
    team_size = TeamSize()
    for share in shares:
        threads = team_size.choose(most)
        assert 1 <= threads <= most
        team_size.observe(threads, share, 0.2)


SIZES: dict[str, Any] = {"vocab_size": 50, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 256}
SIZES |= {"num_hidden_layers": 2, "max_position_embeddings": 300}


@pytest.fixture(params=["int8", "fp32"])
def model(request: pytest.FixtureRequest) -> NativeModel:
    plan = plan_for("classify", "q8bert", **SIZES)
    if request.param == "int8":
        return load_native(plan, TensorSource(RandomInt8(plan)))
    plan = Plan.of(plan.spec, plan.head)
    return load_native_float(plan, TensorSource(RandomFloat(plan)))


def sequence(tokens: int) -> TokenBatch:
    return TokenBatch(np.arange(tokens) % 50, np.zeros(tokens, np.int64), (tokens,))


@pytest.mark.parametrize("most", [1, 2, 3])
def test_small_batches_get_one_thread_and_others_as_many_as_they_may(
    model: NativeModel, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []

    def compute(self: NativeModel, batch: TokenBatch, threads: int) -> tuple[object, float]:
        used.append(threads)
        return None, 1.0

    monkeypatch.setattr(NativeModel, "compute", compute)
    largest = SMALL // (2 * (4 * 64 * 64 + 2 * 64 * 256))
    for tokens in (1, largest, largest + 1, 300):
        model.logits(sequence(tokens), most)
    assert used == [1, 1, most, most]


def test_the_share_of_cpu_time_decides_about_the_next_batch(
    model: NativeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers that the library was called with, while it says that a thread of two got no CPU time."""
    used: list[int] = []
    library = NativeModel.compute

    def compute(self: NativeModel, batch: TokenBatch, threads: int) -> tuple[object, float]:
        used.append(threads)
        logits, share = library(self, batch, threads)
        assert 0 < share < 1.01  # of the region's time; the two clocks may differ a little
        return logits, 0.1 if threads > 1 else 1.0

    monkeypatch.setattr(NativeModel, "compute", compute)
    logits = [model.logits(sequence(200), 2) for _ in range(20)]
    assert used[0] == 2
    assert used[-1] == 1
    assert all(np.array_equal(each, logits[0]) for each in logits)


def test_an_engine_that_is_given_one_thread_never_uses_more(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_for("classify", "q8bert", **SIZES)
    engine = build_engine(plan, RandomInt8(plan), "native", threads=1)
    used: list[int] = []
    library = NativeModel.compute

    def compute(self: NativeModel, batch: TokenBatch, threads: int) -> tuple[object, float]:
        used.append(threads)
        return library(self, batch, threads)

    monkeypatch.setattr(NativeModel, "compute", compute)
    for _ in range(40):
        engine.infer(sequence(250))
    assert set(used) == {1}
    assert engine.describe()["threads"] == 1
