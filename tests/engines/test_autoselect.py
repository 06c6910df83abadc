from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from q8core import machine
from q8core.cache import CACHE_VARIABLE
from q8core.engines.choice import autoselect, timing
from q8core.engines.choice.autoselect import choose_kernel
from q8core.engines.choice.int8_kernels import Native, proven_kernel
from q8core.engines.choice.speed_note import speed_note
from q8core.engines.choice.timing import Measurement
from q8core.errors import EngineError
from q8core.native.library import ISA_VARIABLE, variants
from q8core.quant import Plan, preset
from tests.engines.conftest import KERNELS, Simulated


@pytest.fixture(autouse=True)
def nothing_is_cached(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test measures for itself, without a vector variant of the native kernel, which would be taken unmeasured."""
    monkeypatch.setenv(ISA_VARIABLE, "portable")


@pytest.fixture
def plan(classifier: Simulated) -> Plan:
    return classifier.plan


def fixed_times(foreign: float = 0.0, **times: float) -> object:
    return lambda kernels, plan, threads: Measurement(
        {name: {16: times[name], 128: times[name]} for name in kernels}, foreign
    )


def test_auto_takes_a_vector_variant_without_timing_others(monkeypatch: pytest.MonkeyPatch, plan: Plan) -> None:
    monkeypatch.delenv(ISA_VARIABLE)
    if next(iter(variants())) == "portable":
        pytest.skip("this CPU runs no vector variant of the native kernel")
    monkeypatch.setattr(autoselect, "measure_layer", None)
    choice = choose_kernel("auto", plan)
    assert (choice.kernel.name, choice.how, choice.refused) == ("native", "preferred", {})


def test_auto_does_not_prefer_what_cannot_compute_the_plan(monkeypatch: pytest.MonkeyPatch, plan: Plan) -> None:
    monkeypatch.delenv(ISA_VARIABLE)
    monkeypatch.setattr(Native, "refused", lambda self, plan: "not this one")
    choice = choose_kernel("auto", plan)
    assert choice.kernel.name != "native"
    assert choice.refused == {"native": "not this one"}


@pytest.fixture
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real times, whoever else uses this machine."""
    monkeypatch.setattr(timing, "ForeignTime", lambda: SimpleNamespace(share=lambda: 0.0))


@pytest.mark.parametrize("best", KERNELS)
def test_auto_keeps_the_fastest(monkeypatch: pytest.MonkeyPatch, plan: Plan, best: str) -> None:
    times = {name: 1.0 if name == best else 2.0 for name in KERNELS}
    monkeypatch.setattr(autoselect, "measure_layer", fixed_times(**times))
    choice = choose_kernel("auto", plan)
    assert choice.kernel.name == best
    assert choice.facts()["kernel_microseconds"] == {name: {"16": t, "128": t} for name, t in times.items()}


def test_disturbed_times_are_not_kept(monkeypatch: pytest.MonkeyPatch, plan: Plan) -> None:
    """The kernel that was slower because others computed serves this load only; the next one times again."""
    disturbed = fixed_times(foreign=0.5, native=1.0, onednn=2.0, fbgemm=3.0)
    monkeypatch.setattr(autoselect, "measure_layer", disturbed)
    choice = choose_kernel("auto", plan)
    assert (choice.kernel.name, choice.facts()["kernel_choice"]) == ("native", "disturbed")
    monkeypatch.setattr(autoselect, "measure_layer", fixed_times(native=2.0, onednn=1.0, fbgemm=3.0))
    assert (choose_kernel("auto", plan).kernel.name, choose_kernel("auto", plan).how) == ("onednn", "cached")


@pytest.mark.usefixtures("undisturbed")
def test_auto_measures_every_kernel(plan: Plan) -> None:
    measured = choose_kernel("auto", plan).microseconds
    assert set(measured) == set(KERNELS)
    assert all(time > 0 for by in measured.values() for time in by.values())


def test_auto_skips_what_cannot_be_used_and_says_why(monkeypatch: pytest.MonkeyPatch, plan: Plan) -> None:
    def only_onednn(name: str, sizes: object) -> object:
        if name != "onednn":
            raise EngineError(f"no {name} here")
        return proven_kernel(name, [32])

    monkeypatch.setattr(autoselect, "proven_kernel", only_onednn)
    choice = choose_kernel("auto", plan)
    assert choice.kernel.name == "onednn"
    assert choice.facts()["kernels_refused"] == {"fbgemm": "no fbgemm here", "native": "no native here"}
    with pytest.raises(EngineError, match="no fbgemm here"):
        choose_kernel("fbgemm", plan)


def test_no_usable_kernel_is_an_error(monkeypatch: pytest.MonkeyPatch, plan: Plan) -> None:
    def none(name: str, sizes: object) -> object:
        raise EngineError(f"{name} is broken")

    monkeypatch.setattr(autoselect, "proven_kernel", none)
    with pytest.raises(EngineError, match=r"native is broken.*onednn is broken.*fbgemm is broken"):
        choose_kernel("auto", plan)


def test_a_chosen_kernel_is_not_measured(monkeypatch: pytest.MonkeyPatch, plan: Plan) -> None:
    monkeypatch.setattr(autoselect, "measure_layer", None)
    assert choose_kernel("onednn", plan).microseconds == {}


@pytest.mark.usefixtures("undisturbed")
def test_a_later_load_reads_the_times(monkeypatch: pytest.MonkeyPatch, plan: Plan) -> None:
    first = choose_kernel("auto", plan)
    monkeypatch.setattr(autoselect, "measure_layer", None)
    second = choose_kernel("auto", plan)
    assert (first.how, second.how) == ("measured", "cached")
    assert second.microseconds == first.microseconds
    assert second.kernel.name == first.kernel.name
    assert second.facts()["kernel_choice"] == "cached"


@pytest.mark.parametrize("change", ["cpu", "flags", "threads", "torch", "library", "code", "variable", "kernels"])
@pytest.mark.usefixtures("undisturbed")
def test_times_of_other_conditions_are_not_taken(monkeypatch: pytest.MonkeyPatch, plan: Plan, change: str) -> None:
    choose_kernel("auto", plan)
    name, flags = machine.cpu()
    threads = torch.get_num_threads()
    if change == "cpu":
        monkeypatch.setattr(autoselect, "cpu", lambda: ("another CPU", flags))
    elif change == "flags":
        monkeypatch.setattr(autoselect, "cpu", lambda: (name, flags | {"avx1024"}))
    elif change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    elif change == "torch":
        monkeypatch.setattr(torch, "__version__", "9.9.9")
    elif change == "library":
        monkeypatch.setattr(autoselect, "load_library", lambda: SimpleNamespace(q8_digest=lambda: b"another"))
    elif change == "code":
        monkeypatch.setattr(autoselect, "code_digest", lambda: "another")
    elif change == "variable":
        monkeypatch.setenv("ONEDNN_CPU_ISA_HINTS", "PREFER_YMM")  # read by oneDNN once, and long ago
    else:
        monkeypatch.setattr(autoselect, "KERNEL_NAMES", ("native", "onednn"))
    assert choose_kernel("auto", plan).how == "measured"


@pytest.mark.usefixtures("undisturbed")
def test_times_of_another_layer_are_not_taken(plan: Plan) -> None:
    choose_kernel("auto", plan)
    scheme = preset("q8bert")
    assert choose_kernel("auto", Plan.of(replace(plan.spec, vocabulary=7), plan.head, scheme)).how == "cached"
    assert choose_kernel("auto", Plan.of(replace(plan.spec, inner=96), plan.head, scheme)).how == "measured"


@pytest.mark.parametrize(
    ("changes", "how"),
    [
        ({"name": "another", "ema_decay": 0.5}, "cached"),
        ({"overrides": {"layers.1.ffn_in": {"weight": {"bits": 4}}}}, "cached"),
        ({"overrides": {"layers.0.ffn_in": {"weight": {"granularity": "tensor"}}}}, "measured"),
        ({"slots": preset("q8bert-attention").slots}, "measured"),
    ],
)
@pytest.mark.usefixtures("undisturbed")
def test_times_of_another_scheme_are_taken_where_the_layer_is_the_same(
    plan: Plan, changes: dict[str, Any], how: str
) -> None:
    choose_kernel("auto", plan)
    scheme = replace(preset("q8bert"), **changes)
    assert choose_kernel("auto", Plan.of(plan.spec, plan.head, scheme)).how == how


@pytest.mark.usefixtures("undisturbed")
def test_without_a_cache_they_are_measured_each_time_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, plan: Plan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    assert [choose_kernel("auto", plan).how for _ in range(2)] == ["measured", "measured"]
    assert caplog.text.count("cache unusable") == 1


def test_how_it_was_chosen_is_told(monkeypatch: pytest.MonkeyPatch, plan: Plan) -> None:
    assert choose_kernel("fbgemm", plan).facts()["kernel_choice"] == "given"
    monkeypatch.setattr(autoselect, "KERNEL_NAMES", ("fbgemm",))
    assert choose_kernel("auto", plan).facts()["kernel_choice"] == "only"


@pytest.mark.parametrize(
    ("kernel", "isa", "flags", "words"),
    [
        ("native", "amx", {"amx_int8", "avx512_vnni"}, None),
        ("native", "avx512_vnni", {"avx512_vnni"}, None),
        ("native", "avx_vnni", {"avx2", "avx_vnni"}, None),
        ("native", "avx2", {"avx2"}, "the native kernel runs its AVX2 variant, without VNNI"),
        ("native", "avx2", {"avx2", "avx_vnni"}, "the native kernel runs its AVX2 variant, without VNNI"),
        ("native", "portable", set[str](), "plain C"),
        ("onednn", "AVX2", {"avx2"}, "torch's onednn kernel runs without"),
        ("onednn", "AVX2", {"avx2", "avx_vnni"}, None),
        ("fbgemm", "DEFAULT", {"asimd", "asimddp"}, None),
        ("fbgemm", "DEFAULT", set[str](), None),
    ],
)
def test_a_slow_cpu_gets_an_honest_line(kernel: str, isa: str, flags: set[str], words: str | None) -> None:
    note = speed_note(kernel, isa, flags)
    if words is None:
        assert note is None
    else:
        assert note is not None
        assert words in note
        assert "slower" in note
        assert "\n" not in note
