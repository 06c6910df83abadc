"""The floors of the benchmark: all of a model's matrix products, and exact ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from q8core.bench import floor
from q8core.bench.floor import FLOORS, NativeFloor, OnednnFloor, Product, load_floors, products
from q8core.bench.folder import random_folder
from q8core.bench.workloads import random_batch
from q8core.checkpoint import Checkpoint
from q8core.engines.choice.random_weights import RandomInt8
from q8core.engines.loaders.native import load_native
from q8core.engines.tensors.source import TensorSource
from q8core.errors import EngineError
from q8core.native import variants
from tests.arrays import as_tensors
from tests.engines.conftest import plan_for

TINY: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip


def test_the_floor_holds_the_products_of_the_model() -> None:
    """Against the linear layers of transformers, counted in multiplications."""
    encoder = BertModel(BertConfig(**TINY)).encoder
    expected = sum(m.weight.numel() for m in encoder.modules() if isinstance(m, torch.nn.Linear))
    for task in ("qa", "classify"):
        assert sum(p.out * p.columns for p in products(plan_for(task, None, **TINY))) == expected
    plan = plan_for("classify", None, **TINY)
    first_rows = [p for p in products(plan) if p.first_rows]
    assert first_rows == [Product(32, 32, True), Product(32, 32, True), Product(64, 32, True), Product(32, 64, True)]
    for int8 in (False, True):
        OnednnFloor(plan, int8=int8).bind(random_batch((3, 5), 100))()


def after(tensors: dict[str, Tensor], path: str, x: Tensor, inverse: Tensor) -> Tensor:
    """The integers of a layer's output by int64 sums; scaling in float32, as the contract says."""
    scale_x, scale_w = tensors[f"{path}.input_scale"], tensors[f"{path}.weight_scale"]
    r = scale_x * scale_w
    y = (x @ tensors[f"{path}.weight"].long().T).float() * r + tensors[f"{path}.bias"].float() * r
    return (y * inverse).round().clamp(-127, 127).long()


def expected_products(tensors: dict[str, Tensor], layers: int, x: Tensor, first: int | None) -> list[Tensor]:
    """Input of the next layer, then query, key, value, attention output and inner state of the last one."""
    found: list[Tensor] = []
    for number in range(layers):
        path = f"layers.{number}"
        rows = x[:first] if number + 1 == layers else x

        def linear(leaf: str, values: Tensor, reader: str, scale: str = "input_scale", path: str = path) -> Tensor:
            return after(tensors, f"{path}.{leaf}", values, tensors[f"{path}.{reader}.{scale}"].reciprocal())

        query = linear("query", rows, "query", "output_scale")
        key = linear("key", x, "key", "output_scale")
        value = linear("value", x, "attention_output")
        attended = linear("attention_output", value[: len(rows)], "ffn_in")
        inner = linear("ffn_in", attended, "ffn_out")
        following = linear("ffn_out", inner, "query")
        found, x = [following, query, key, value, attended, inner], torch.cat([following, x[len(rows) :]])
    return found


def unpack(memory: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Read (rows, columns) integers from blocks of 16 rows x 64 columns; return them and the memory behind."""
    depth, blocks = -(-columns // 64), -(-rows // 16) + 2
    size = blocks * 16 * depth * 64
    plain = memory[:size].view(blocks, depth, 16, 64).transpose(1, 2).reshape(-1, depth * 64)
    return plain[:, :columns].long() - 128, memory[size:]


@pytest.mark.parametrize("variant", ["amx", "avx512_vnni", "avx_vnni", "avx2", "portable"])
@pytest.mark.parametrize("task", ["qa", "classify"])
@pytest.mark.parametrize(("hidden", "inner"), [(32, 64), (52, 200)])
def test_the_native_floor_computes_every_product(variant: str, task: Any, hidden: int, inner: int) -> None:
    """To the bit, against int64 sums: nothing of the work is left out."""
    if variant not in variants():
        pytest.skip(f"this CPU has no {variant}")
    plan = plan_for(task, **{**TINY, "hidden_size": hidden, "intermediate_size": inner})
    tensors, lengths = RandomInt8(plan), (3, 150, 40)
    model = load_native(plan, TensorSource(tensors), variant)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        memory: Any = torch.from_numpy(NativeFloor(model).bind(random_batch(lengths, 100))())
    finally:
        torch.set_num_threads(before)
    x = torch.ones(sum(lengths), hidden, dtype=torch.int64)
    wanted = expected_products(as_tensors(tensors), 2, x, len(lengths) if task == "classify" else None)
    for columns, integers in zip((*[hidden] * 5, inner), wanted, strict=True):
        found, memory = unpack(memory, sum(lengths), columns)
        assert torch.equal(found[: len(integers)], integers)
        assert len(integers.unique()) > 5
    assert len(memory) == 0


@pytest.fixture
def checkpoint() -> Iterator[Checkpoint]:
    with random_folder("bert-base", "qa", **TINY) as folder:
        yield Checkpoint.open(folder)


def test_each_precision_has_its_floors(checkpoint: Checkpoint) -> None:
    for int8 in (False, True):
        floors = load_floors(checkpoint, 1, int8=int8)
        assert tuple(floors) == FLOORS[int8]
        for each in floors.values():
            each.bind(random_batch((3, 5), 100))()


def test_without_the_native_library_onednns_floor_is_left(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise EngineError("the native kernel was not built")

    monkeypatch.setattr(floor, "load_named_engine", refuse)
    assert tuple(load_floors(checkpoint, 1, int8=True)) == ("floor-int8-onednn",)


def test_the_native_floor_runs_for_scales_of_each_token() -> None:
    """Their layers have no fixed step that the floor could read."""
    plan = plan_for("classify", "dynamic", **TINY)
    for name in variants():
        model = load_native(plan, TensorSource(RandomInt8(plan)), name)
        assert NativeFloor(model).bind(random_batch((3, 40), 100))() is not None
