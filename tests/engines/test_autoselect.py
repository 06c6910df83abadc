from __future__ import annotations

from pathlib import Path

import pytest

from q8core.engines import autoselect
from q8core.engines.autoselect import choose_kernel
from q8core.engines.kernels import proven_kernel
from q8core.engines.shape import ModelShape
from q8core.engines.source import TensorSource
from q8core.errors import EngineError
from tests.engines.conftest import KERNELS, Simulated


@pytest.fixture(autouse=True)
def nothing_is_cached(empty_cache: Path) -> None:
    """Each test measures for itself."""


@pytest.fixture
def question(classifier: Simulated) -> tuple[object, ...]:
    return ModelShape.of(classifier.config), "classify", TensorSource(classifier.tensors)


def fixed_times(**times: float) -> object:
    return lambda kernels, shape: {name: {16: times[name], 128: times[name]} for name in kernels}


@pytest.mark.parametrize("best", KERNELS)
def test_auto_keeps_the_fastest(monkeypatch: pytest.MonkeyPatch, question: tuple[object, ...], best: str) -> None:
    times = {name: 1.0 if name == best else 2.0 for name in KERNELS}
    monkeypatch.setattr(autoselect, "measure_layer", fixed_times(**times))
    choice = choose_kernel("auto", *question)
    assert choice.kernel.name == best
    assert choice.facts()["kernel_microseconds"] == {name: {"16": t, "128": t} for name, t in times.items()}


def test_auto_measures_every_kernel(question: tuple[object, ...]) -> None:
    measured = choose_kernel("auto", *question).microseconds
    assert set(measured) == set(KERNELS)
    assert all(time > 0 for by in measured.values() for time in by.values())


def test_auto_skips_what_cannot_be_used_and_says_why(
    monkeypatch: pytest.MonkeyPatch, question: tuple[object, ...]
) -> None:
    def only_onednn(name: str, sizes: object) -> object:
        if name != "onednn":
            raise EngineError(f"no {name} here")
        return proven_kernel(name, [32])

    monkeypatch.setattr(autoselect, "proven_kernel", only_onednn)
    choice = choose_kernel("auto", *question)
    assert choice.kernel.name == "onednn"
    assert choice.facts()["kernels_refused"] == {"fbgemm": "no fbgemm here", "native": "no native here"}
    with pytest.raises(EngineError, match="no fbgemm here"):
        choose_kernel("fbgemm", *question)


def test_no_usable_kernel_is_an_error(monkeypatch: pytest.MonkeyPatch, question: tuple[object, ...]) -> None:
    def none(name: str, sizes: object) -> object:
        raise EngineError(f"{name} is broken")

    monkeypatch.setattr(autoselect, "proven_kernel", none)
    with pytest.raises(EngineError, match=r"native is broken.*onednn is broken.*fbgemm is broken"):
        choose_kernel("auto", *question)


def test_a_chosen_kernel_is_not_measured(monkeypatch: pytest.MonkeyPatch, question: tuple[object, ...]) -> None:
    monkeypatch.setattr(autoselect, "measure_layer", None)
    assert choose_kernel("onednn", *question).microseconds == {}
