"""The native library: exact sums on every variant, the same bits from all of them, and what it refuses."""

from __future__ import annotations

import ctypes
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from q8core.engines import TokenBatch, build_engine
from q8core.engines.choice.int8_kernels import accumulate, extreme_operands, proven_kernel, proven_native
from q8core.engines.choice.random_weights import RandomInt8
from q8core.engines.loaders.native import load_native
from q8core.engines.tensors.source import TensorSource
from q8core.errors import EngineError, InputError
from q8core.native import compile, library, structs, variants
from q8core.quant import Plan, preset
from tests.arrays import batch_of, infer
from tests.engines.conftest import EACH_VARIANT, TASKS, Simulated, plan_for, simulate

pytestmark = pytest.mark.usefixtures("every_variant")


@EACH_VARIANT
@pytest.mark.parametrize("size", [384, 768, 1536, 3072])
@pytest.mark.parametrize("values", ["extreme", "random"])
def test_accumulators_equal_int64_sums(variant: str, size: int, values: str) -> None:
    generator = np.random.default_rng(size)
    x, weight = (
        extreme_operands(size)
        if values == "extreme"
        else (generator.integers(-127, 128, (rows, size)) for rows in (33, 16))
    )
    assert np.array_equal(accumulate(variant, x, weight), x @ weight.T)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 40), out=st.integers(1, 70), size=st.integers(1, 200), seed=st.integers(0, 99))
def test_any_size_is_padded_without_a_trace(rows: int, out: int, size: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    x = generator.integers(-127, 128, (rows, size))
    weight = generator.integers(-127, 128, (out, size))
    for variant in variants():
        assert np.array_equal(accumulate(variant, x, weight), x @ weight.T)


def logits_of(plan: Plan, variant: str, lengths: tuple[int, ...]) -> torch.Tensor:
    model = load_native(plan, TensorSource(RandomInt8(plan)), variant)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(plan.spec.vocabulary, (sum(lengths),), generator=generator)
    return torch.from_numpy(model.compute(batch_of(ids, ids % 2, lengths), 2)[0])


# Head sizes of 64, 32, 80, 20 and 13 columns; 52 and 40 are no multiple of a vector.
SIZES = [(128, 2, 512), (64, 2, 96), (160, 2, 320), (40, 2, 72), (52, 4, 100)]


@EACH_VARIANT
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("scheme", ["q8bert", "q8bert-attention", "dynamic"])
@pytest.mark.parametrize(("hidden", "heads", "inner"), SIZES)
def test_every_variant_and_torch_agree(
    variant: str, task: Any, scheme: str, hidden: int, heads: int, inner: int
) -> None:
    """Against torch's kernels: an integer that fell to the other side would move logits by hundredths."""
    plan = plan_for(
        task,
        scheme,
        vocab_size=50,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=inner,
        num_hidden_layers=2,
        max_position_embeddings=200,
    )
    lengths = (5, 33, 1, 64, 130, 16)
    found = logits_of(plan, variant, lengths)
    assert torch.equal(found, logits_of(plan, "portable", lengths))
    reference = build_engine(plan, RandomInt8(plan), "onednn")
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(50, (sum(lengths),), generator=generator)
    difference = (found - infer(reference, batch_of(ids, ids % 2, lengths))).abs().amax(dim=1)
    assert float((difference <= 1e-5).float().mean()) >= 0.8
    assert float(difference.max()) <= 0.05


def test_a_user_can_restrict_the_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = list(variants())
    for limit in ("amx", "avx512_vnni", "avx_vnni", "avx2", "portable"):
        monkeypatch.setenv("Q8BERT_MAX_ISA", limit)
        if limit in everything:
            assert list(variants()) == everything[everything.index(limit) :]
        assert proven_kernel("native", [64]).facts["isa"] == next(iter(variants()))
    assert list(variants()) == ["portable"]
    monkeypatch.setenv("Q8BERT_MAX_ISA", "")
    assert list(variants()) == everything


@pytest.mark.parametrize("kernel", ["native", "auto"])
def test_an_unknown_restriction_is_refused(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    """Not taken for a reason to choose another kernel."""
    monkeypatch.setenv("Q8BERT_MAX_ISA", "avx512")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    plan = plan_for("qa", vocab_size=50, **sizes)
    message = "Q8BERT_MAX_ISA is 'avx512'; allowed: amx, avx512_vnni, avx_vnni, avx2, portable"
    with pytest.raises(InputError, match=message):
        build_engine(plan, RandomInt8(plan), kernel)


def test_threads_that_move_to_another_cpu_may_run_on_all_of_them_afterwards(answerer: Simulated) -> None:
    model = load_native(answerer.plan, TensorSource(answerer.tensors))
    batch, allowed = TokenBatch(np.arange(20), np.zeros(20, np.int64), (13, 7)), os.sched_getaffinity(0)
    for _ in range(50):
        model.compute(batch, 3)
        time.sleep(0.005)  # the threads fall asleep, and some are woken on the CPU of the one that wakes them
    assert {frozenset(os.sched_getaffinity(int(task.name))) for task in Path("/proc/self/task").iterdir()} == {
        frozenset(allowed)
    }


def test_threads_that_share_a_cpu_are_found_out(answerer: Simulated) -> None:
    model = load_native(answerer.plan, TensorSource(answerer.tensors))
    batch, allowed = TokenBatch(np.arange(150) % 50, np.zeros(150, np.int64), (100, 50)), os.sched_getaffinity(0)
    model.compute(batch, 3)
    tasks = [int(task.name) for task in Path("/proc/self/task").iterdir()]
    try:
        for task in tasks:
            os.sched_setaffinity(task, {min(allowed)})
        _, share = model.compute(batch, 3)
        assert 0 < share < 0.34  # of the time; the two clocks may differ a little
    finally:
        for task in tasks:
            os.sched_setaffinity(task, allowed)


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_the_number_of_threads_does_not_matter(answerer: Simulated, threads: int) -> None:
    batch = TokenBatch(np.arange(150) % 50, np.zeros(150, np.int64), (100, 7, 43))
    model = load_native(answerer.plan, TensorSource(answerer.tensors))
    assert np.array_equal(model.compute(batch, 1)[0], model.compute(batch, threads)[0])


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"head.output": "float"}, r"int8 layers; head\.output is float"),
        ({"layers.0.key": {"output": None}}, r"both or neither .*; only the output of layers\.0\.key is in float"),
    ],
)
def test_other_schemes_are_refused_and_auto_takes_another_kernel(overrides: Any, reason: str) -> None:
    simulated = simulate("classify", replace(preset("q8bert"), overrides=overrides))
    with pytest.raises(EngineError, match=reason):
        build_engine(simulated.plan, simulated.tensors, "native")
    engine = build_engine(simulated.plan, simulated.tensors, "auto")
    assert engine.kernel in ("onednn", "fbgemm")
    refused: Any = engine.describe()["kernels_refused"]
    assert re.search(reason, refused["native"])


def test_a_variant_that_cannot_run_is_refused(answerer: Simulated) -> None:
    with pytest.raises(EngineError, match=r"'neon' cannot run here; usable: .*portable"):
        load_native(answerer.plan, TensorSource(answerer.tensors), "neon")


def test_wrong_sums_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("q8core.engines.choice.int8_kernels.accumulate", lambda *_: np.zeros((8, 16), np.int32))
    with pytest.raises(EngineError, match=r"native kernel \(portable\) does not compute exact"):
        proven_native("portable", [64])


def test_wrong_sums_of_codes_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    right = accumulate
    monkeypatch.setattr(
        "q8core.engines.choice.int8_kernels.accumulate",
        lambda *values: right(*values) + (values[-1] is not None and values[-1].bits == 2),
    )
    kernel, base = proven_native("portable", [64]), preset("q8bert")
    few, other = (replace(base, overrides={"*.ffn_in": {"weight": {"bits": bits}}}) for bits in (2, 4))
    refusal = kernel.refused(plan_for("classify", few))
    assert refusal == "the native kernel (portable) does not compute exact integer sums on this CPU"
    assert kernel.refused(plan_for("classify", other)) is None


def test_a_missing_library_is_said_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    with pytest.raises(EngineError, match=r"was not built.*g\+\+"):
        library.load_library.__wrapped__()


def test_a_library_of_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "source_digest", lambda: "other")
    with pytest.raises(EngineError, match="other sources"):
        library.load_library.__wrapped__()


@pytest.mark.parametrize("mirror", structs.MIRRORED, ids=lambda mirror: mirror.__name__)
def test_a_structure_of_another_size_than_the_librarys_is_refused(mirror: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"_fields_": (*mirror._fields_, ("one_more", ctypes.c_void_p))}
    longer = type(mirror.__name__, (ctypes.Structure,), fields)
    others = [longer if each is mirror else each for each in structs.MIRRORED]
    monkeypatch.setattr(library, "MIRRORED", others)
    sizes = f"has {ctypes.sizeof(longer)} bytes, the native kernel's has {ctypes.sizeof(mirror)}"
    with pytest.raises(EngineError, match=rf"structs\.{mirror.__name__} {sizes}"):
        library.load_library.__wrapped__()


def test_every_structure_is_compared() -> None:
    found = {each for each in vars(structs).values() if isinstance(each, type) and issubclass(each, ctypes.Structure)}
    assert found == set(structs.MIRRORED)


def test_compiling_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(compile.CannotCompile, match=r"no C\+\+ compiler 'no-such-compiler'"):
        compile.compile_library(tmp_path)
    assert list(tmp_path.iterdir()) == []
