"""The float engine against Hugging Face's own forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

from q8core.checkpoint.manifest import FLOAT_FILE
from q8core.checkpoint.tensors import TensorFile
from q8core.engines import build_engine, load_engine
from q8core.engines.choice.fp32_kernels import FP32_KERNEL_NAMES, choose_fp32_kernel
from q8core.engines.layers.attention import FloatProducts, packed_attention
from q8core.engines.loaders.native_float import float_variants, load_native_float
from q8core.engines.packing import TokenBatch
from q8core.engines.tensors.source import TensorSource
from q8core.errors import CheckpointError, EngineError, InputError
from q8core.quant.qat.convert import arrays
from tests.arrays import as_tensors, batch_of
from tests.engines.conftest import (
    VOCABULARY,
    Float,
    engine_logits,
    float_model,
    largest_difference,
    random_sequences,
    reference_logits,
)
from tests.models import plan_of, site_tensors

EACH_KERNEL = pytest.mark.parametrize("kernel", FP32_KERNEL_NAMES)


@EACH_KERNEL
def test_logits_equal_hugging_face_packed_against_padded(floats: Float, kernel: str) -> None:
    engine = build_engine(floats.plan, floats.tensors, kernel)
    assert engine.kernel == kernel
    sequences = random_sequences([5, 7, 7, 40, 1, 128, 3])
    found = engine_logits(engine, sequences)
    expected = reference_logits(floats.task, floats.model, sequences)
    assert [logits.shape for logits in found] == [logits.shape for logits in expected]
    assert largest_difference(found, expected) <= 1e-5


@EACH_KERNEL
def test_bfloat16_files_are_widened(floats: Float, kernel: str, tmp_path: Path) -> None:
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in as_tensors(floats.tensors).items()}
    save_file(halves, tmp_path / "halves.safetensors")
    narrow = TensorFile(tmp_path / "halves.safetensors")
    assert {narrow.dtype(name) for name in narrow} == {"BF16"}
    wide = arrays({name: tensor.float() for name, tensor in halves.items()})
    assert all(np.array_equal(narrow[name], array) for name, array in wide.items())
    sequences = random_sequences([6, 11])
    engines = [build_engine(floats.plan, tensors, kernel) for tensors in (narrow, wide)]
    found = [engine_logits(engine, sequences) for engine in engines]
    assert largest_difference(*found) == 0


def test_equal_lengths_share_a_call_without_changing_a_bit() -> None:
    torch.manual_seed(0)
    heads, size, lengths = 3, 16, (33, 33, 33, 200, 200, 7)
    q, k, v = (torch.randn(sum(lengths), heads * size) for _ in range(3))
    ids = np.zeros(sum(lengths), np.int64)
    products = FloatProducts(0.25)
    together = packed_attention(q, k, v, TokenBatch(ids, ids, lengths).runs(), heads, products)
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        alone = TokenBatch(ids[rows], ids[rows], (length,)).runs()
        assert torch.equal(together[rows], packed_attention(q[rows], k[rows], v[rows], alone, heads, products))
        start += length


def test_attention_equals_the_textbook_formula() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(9, 8, dtype=torch.float32) for _ in range(3))
    ids = np.zeros(9, np.int64)
    batch = TokenBatch(ids, ids, (4, 5))
    found = packed_attention(q, k, v, batch.runs(), 2, FloatProducts(0.3))
    first = packed_attention(q[batch.first_rows()], k, v, batch.runs(), 2, FloatProducts(0.3), first_only=True)
    for row, rows in enumerate((range(4), range(4, 9))):
        for head in (slice(0, 4), slice(4, 8)):
            own_q, own_k, own_v = (each[list(rows), head].double() for each in (q, k, v))
            weights = torch.exp(0.3 * own_q @ own_k.T)
            expected = (weights / weights.sum(1, keepdim=True)) @ own_v
            torch.testing.assert_close(found[list(rows), head].double(), expected, rtol=0, atol=1e-6)
            torch.testing.assert_close(first[row, head].double(), expected[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("ids", "types", "message"),
    [
        ([0, VOCABULARY], [0, 0], f"input_ids holds {VOCABULARY}; allowed: 0 to {VOCABULARY - 1}"),
        ([0, -1], [0, 0], "input_ids holds -1"),
        ([0, 1], [0, 2], "token_type_ids holds 2; allowed: 0 to 1"),
        ([0] * 129, [0] * 129, "129 tokens; this model takes at most 128"),
    ],
)
def test_bad_tokens_are_refused(ids: list[int], types: list[int], message: str) -> None:
    made = float_model("classify")
    engine = build_engine(made.plan, made.tensors)
    with pytest.raises(InputError, match=message):
        engine.infer(TokenBatch.pack([(ids, types)]))


@EACH_KERNEL
def test_tensors_that_do_not_fit_are_refused(kernel: str) -> None:
    made = float_model("qa")
    tensors = made.tensors
    without = {name: tensor for name, tensor in tensors.items() if name != "layers.1.ffn_out.bias"}
    with pytest.raises(CheckpointError, match=r"layers\.1\.ffn_out\.bias is missing"):
        build_engine(made.plan, without, kernel)
    with pytest.raises(CheckpointError, match=r"head\.output\.weight has shape \(3, 32\); the plan says \(2, 32\)"):
        build_engine(made.plan, {**tensors, "head.output.weight": np.zeros((3, 32), np.float32)}, kernel)
    with pytest.raises(CheckpointError, match=r"fit no part of the model, first: layers\.typo"):
        build_engine(made.plan, {**tensors, "layers.typo": np.zeros(1, np.float32)}, kernel)
    narrow = {**tensors, "head.output.weight": np.zeros((2, 32), np.int8)}
    with pytest.raises(CheckpointError, match=r"head\.output\.weight is int8; the plan says float32"):
        build_engine(made.plan, narrow, kernel)


@EACH_KERNEL
def test_what_a_file_holds_for_other_tasks_is_left_there(tmp_path: Path, kernel: str) -> None:
    made = float_model("qa")
    made.model.save_pretrained(tmp_path)
    unused = {"bert.embeddings.position_ids": torch.arange(5), "bert.pooler.dense.weight": torch.zeros(32, 32)}
    save_file({**load_file(tmp_path / FLOAT_FILE), **unused}, tmp_path / FLOAT_FILE, {"format": "pt"})
    engine, sequences = load_engine(tmp_path, "fp32", kernel), random_sequences([5, 40])
    expected = reference_logits("qa", made.model, sequences)
    assert engine.kernel == kernel
    assert largest_difference(engine_logits(engine, sequences), expected) <= 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"is_decoder": True}, "is_decoder"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
    ],
)
def test_configs_of_other_models_are_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    """Whoever has no plan has no engine: neither a plan nor a checkpoint is made of them."""
    model = float_model("qa").model
    for name, value in change.items():
        setattr(model.config, name, value)
    with pytest.raises(CheckpointError, match=message):
        plan_of(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_engine(tmp_path, "fp32")


def test_unknown_names_are_refused(tiny_qa: Path) -> None:
    made = float_model("qa")
    with pytest.raises(InputError, match="backend is 'int4'; allowed: fp32, int8"):
        load_engine(tiny_qa, "int4")
    with pytest.raises(InputError, match="kernel is 'mkl'; allowed: auto, native, onednn, fbgemm"):
        build_engine(made.plan, made.tensors, "mkl")
    with pytest.raises(InputError, match="kernel is 'fbgemm'; allowed for fp32: auto, native, onednn"):
        build_engine(made.plan, made.tensors, "fbgemm")
    with pytest.raises(InputError, match="threads is 0; at least 1"):
        build_engine(made.plan, made.tensors, threads=0)


# Head sizes of 64, 32, 80, 20 and 13 columns; 52 and 40 are no multiple of a vector.
@pytest.mark.parametrize("task", ["classify", "qa"])
@pytest.mark.parametrize(
    ("hidden", "heads", "inner"), [(128, 2, 512), (64, 2, 96), (160, 2, 320), (40, 2, 72), (52, 4, 100)]
)
def test_native_is_as_close_to_float64_as_torch(task: Any, hidden: int, heads: int, inner: int) -> None:
    """On every variant, whose bits are the same."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=inner,
        num_hidden_layers=2,
        max_position_embeddings=200,
        num_labels=2,
        attn_implementation="eager",
    )
    model = (BertForSequenceClassification if task == "classify" else BertForQuestionAnswering)(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)  # attention that is not flat, activations on GELU's whole range
    sequences = random_sequences([5, 33, 1, 64, 130, 16])
    plan, tensors = plan_of(model), arrays(site_tensors(model))
    loaded = [load_native_float(plan, TensorSource(tensors), variant) for variant in float_variants()]
    batch = TokenBatch.pack(sequences)
    first, *others = (torch.from_numpy(native.compute(batch, 2)[0]) for native in loaded)
    for other in others:
        assert torch.equal(first, other)
    torchs = reference_logits(task, model, sequences)
    exact = reference_logits(task, model.double(), sequences)
    error = largest_difference([part.double() for part in batch.split(first, loaded[0].reads)], exact)
    assert error <= 2 * largest_difference([part.double() for part in torchs], exact) + 1e-6


def test_the_number_of_threads_does_not_matter() -> None:
    made = float_model("qa")
    batch = batch_of(torch.arange(120) % VOCABULARY, torch.zeros(120, dtype=torch.int64), (80, 7, 33))
    model = load_native_float(made.plan, TensorSource(made.tensors))
    one, *others = (model.compute(batch, count)[0] for count in (1, 2, 5))
    for other in others:
        assert np.array_equal(other, one)


@pytest.mark.parametrize(
    ("variant", "isa"), [("amx", "avx512"), ("avx512_vnni", "avx512"), ("avx_vnni", "avx2"), ("avx2", "avx2")]
)
def test_the_instruction_set_is_that_of_floats(variant: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("q8core.engines.choice.fp32_kernels.float_variants", lambda: {variant: 1})
    assert choose_fp32_kernel("auto").isa == isa


def test_without_the_library_onednn_runs_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> dict[str, int]:
        raise EngineError("the native kernel was not built")

    monkeypatch.setattr("q8core.engines.choice.fp32_kernels.float_variants", missing)
    choice = choose_fp32_kernel("auto")
    assert choice.name == "onednn"
    assert choice.facts()["kernels_refused"] == {"native": "the native kernel was not built"}
    with pytest.raises(EngineError, match="was not built"):
        choose_fp32_kernel("native")
