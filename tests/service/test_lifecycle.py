from __future__ import annotations

from service.lifecycle import Lifecycle, State


def test_goes_forward_only() -> None:
    life = Lifecycle()
    assert life.advance(State.WARMING)
    assert life.advance(State.DRAINING)
    assert not life.advance(State.READY), "a drain during warm-up is not undone by its end"
    assert life.state is State.DRAINING


def test_failure_is_final_and_the_first_counts() -> None:
    life = Lifecycle()
    first = RuntimeError("first")
    life.fail(first)
    life.fail(RuntimeError("second"))
    assert not life.advance(State.READY)
    assert (life.state, life.failure) == (State.FAILED, first)
    assert life.wait_until_settled(0) is State.FAILED


def test_a_failure_after_the_end_is_none() -> None:
    life = Lifecycle()
    life.advance(State.STOPPED)
    life.fail(RuntimeError("too late"))
    assert (life.state, life.failure) == (State.STOPPED, None)
