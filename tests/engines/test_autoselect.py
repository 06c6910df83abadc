from __future__ import annotations

import pytest

from q8core.engines import autoselect
from q8core.engines.autoselect import choose_kernel
from q8core.engines.kernels import proven_kernel
from q8core.engines.shape import ModelShape
from q8core.errors import EngineError
from tests.conftest import tiny_config

SHAPE = ModelShape.of(tiny_config(50))


def fixed_times(**times: float) -> object:
    return lambda kernels, shape: {name: {16: times[name], 128: times[name]} for name in kernels}


@pytest.mark.parametrize(
    ("times", "best"), [({"fbgemm": 1, "onednn": 2}, "fbgemm"), ({"fbgemm": 2, "onednn": 1}, "onednn")]
)
def test_auto_keeps_the_faster(monkeypatch: pytest.MonkeyPatch, times: dict[str, float], best: str) -> None:
    monkeypatch.setattr(autoselect, "measure_layer", fixed_times(**times))
    choice = choose_kernel("auto", SHAPE)
    assert choice.kernel.name == best
    assert choice.facts()["kernel_microseconds"] == {name: {"16": t, "128": t} for name, t in times.items()}


def test_auto_skips_what_cannot_be_used_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_onednn(name: str, sizes: object) -> object:
        if name == "fbgemm":
            raise EngineError("no fbgemm here")
        return proven_kernel(name, [32])

    monkeypatch.setattr(autoselect, "proven_kernel", only_onednn)
    choice = choose_kernel("auto", SHAPE)
    assert choice.kernel.name == "onednn"
    assert choice.facts()["kernels_refused"] == {"fbgemm": "no fbgemm here"}
    with pytest.raises(EngineError, match="no fbgemm here"):
        choose_kernel("fbgemm", SHAPE)


def test_no_usable_kernel_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str, sizes: object) -> object:
        raise EngineError(f"{name} is broken")

    monkeypatch.setattr(autoselect, "proven_kernel", none)
    with pytest.raises(EngineError, match=r"fbgemm is broken.*onednn is broken"):
        choose_kernel("auto", SHAPE)


def test_a_chosen_kernel_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoselect, "measure_layer", None)
    assert choose_kernel("onednn", SHAPE).microseconds == {}
