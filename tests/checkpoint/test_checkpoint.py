from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from q8core.checkpoint import Checkpoint
from q8core.checkpoint.manifest import FLOAT_FILE, INT8_FILE, MANIFEST_FILE, file_entry
from q8core.engines import TokenBatch, load_engine, self_test
from q8core.errors import CheckpointError
from q8core.quant import preset
from tests.training.test_qat import quantize_tiny


@pytest.fixture(scope="module")
def checkpoint(tiny_classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize_tiny(tiny_classifier, tmp_path_factory.mktemp("checkpoint") / "int8", keep_float=False)


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def resign(folder: Path) -> None:
    """Make the manifest agree with altered files: what remains are the checks of the contents."""
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["files"] = {name: file_entry(folder / name) for name in manifest["files"]}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / INT8_FILE)
    change(tensors)
    save_file(tensors, folder / INT8_FILE)
    resign(folder)


def edit_manifest(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    (folder / MANIFEST_FILE).write_text(json.dumps({**manifest, **changes}))


def test_it_opens_and_replays_its_golden_answers(checkpoint: Path) -> None:
    opened = Checkpoint.open(checkpoint)
    assert (opened.task, opened.labels) == ("classify", ("negative", "positive"))
    assert len(opened.golden) > 0
    for backend in ("int8", "fp32"):
        result = self_test(load_engine(opened, backend), opened, tolerance=1e-4)
        assert result.labels_equal


@pytest.mark.parametrize(("mask", "mode"), [(0o022, "0o644"), (0o027, "0o640")])
def test_its_files_have_ordinary_permissions(tiny_classifier: Path, tmp_path: Path, mask: int, mode: str) -> None:
    before = os.umask(mask)
    try:
        folder = quantize_tiny(tiny_classifier, tmp_path / "int8", keep_float=True)
    finally:
        os.umask(before)
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in folder.iterdir()}
    assert {FLOAT_FILE, INT8_FILE, MANIFEST_FILE} < set(modes)
    assert modes == dict.fromkeys(modes, mode)


def test_truncated(copy: Path) -> None:
    file = copy / INT8_FILE
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated or replaced"):
        Checkpoint.open(copy)
    resign(copy)
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        Checkpoint.open(copy)


@pytest.mark.parametrize("name", [INT8_FILE, "config.json", "tokenizer.json"])
def test_one_byte_flipped(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="sha256"):
        Checkpoint.open(copy)


def test_a_renamed_key(copy: Path) -> None:
    edit_tensors(copy, lambda t: t.update({"head.output.wieght": t.pop("head.output.weight")}))
    with pytest.raises(CheckpointError, match=r"lacks the tensor head\.output\.weight"):
        Checkpoint.open(copy)


def test_an_unknown_key(copy: Path) -> None:
    edit_tensors(copy, lambda t: t.update({"extra": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"tensors that its scheme static does not have: extra"):
        Checkpoint.open(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["embedding_norm.weight"].fill_(float("nan")), "NaN"),
        (lambda t: t["head.output.weight"].fill_(-128), "-128"),
        (lambda t: t["head.output.input_scale"].zero_(), "not positive"),
        (lambda t: t.update({"head.output.bias": t["head.output.bias"].float()}), "F32; its scheme static needs I32"),
        (lambda t: t.update({"head.output.bias": t["head.output.bias"][:1].clone()}), r"shape \(1,\)"),
        (lambda t: t.pop("head.output.weight_scale"), "lacks the tensor head.output.weight_scale"),
        (
            lambda t: t.pop("head.output.input_scale"),
            r"lacks the tensor head\.output\.input_scale",
        ),
    ],
)
def test_wrong_tensors(copy: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str) -> None:
    edit_tensors(copy, change)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(copy)


def test_float_weights_that_are_no_numbers(tiny_classifier: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_classifier, tmp_path / "float"))
    tensors = load_file(folder / FLOAT_FILE)
    tensors["classifier.weight"][0, 0] = torch.inf
    save_file(tensors, folder / FLOAT_FILE, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"classifier\.weight holds NaN or infinite"):
        load_engine(folder, "fp32")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "format_version is 99"),
        ({"task": "ner"}, "allowed: classify, qa"),
        ({"surprise": 1}, r"unknown fields \['surprise'\]"),
        ({"labels": ["one"]}, "at least 2"),
        ({"max_length": 100000}, "max_length is 100000"),
        ({"golden": [{}]}, r"golden\[0\].input_ids is missing"),
        ({"files": {}}, "does not list"),
        ({"max_length": "64"}, "q8bert.json: max_length is '64'; allowed: a whole number"),
        ({"labels": ["a", 1]}, r"q8bert.json: labels\[1\] is 1; allowed: a text"),
        ({"plan": {}}, r"q8bert.json: plan.scheme is missing"),
        ({"plan": {"scheme": {"version": 2}}}, r"q8bert.json: scheme: name is missing"),
        ({"plan": {"scheme": {"version": 3}}}, r"q8bert.json: version is 3; this release reads 2"),
        ({"family": "roberta"}, "family is 'roberta', but model_type in config.json is 'bert'"),
    ],
)
def test_wrong_manifests(copy: Path, changes: dict[str, object], message: str) -> None:
    edit_manifest(copy, **changes)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(copy)


@pytest.fixture(scope="module")
def attention(tiny_classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with quantized attention products."""
    folder = tmp_path_factory.mktemp("attention") / "int8"
    return quantize_tiny(tiny_classifier, folder, "static-attention", keep_float=False)


VALUE = "layers.1.value"


def test_quantized_attention_products_travel_by_file(attention: Path) -> None:
    opened = Checkpoint.open(attention)
    assert opened.scheme == preset("static-attention")
    assert f"{VALUE}.output_scale" in opened.quantized_tensors()
    for backend in ("int8", "fp32"):
        assert self_test(load_engine(opened, backend), opened, tolerance=1e-4).labels_equal


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{VALUE}.output_scale"), r"lacks the tensor layers\.1\.value\.output_scale"),
        (lambda t: t.update({f"{VALUE}.output_scale": torch.ones(2)}), r"shape \(2,\)"),
        (lambda t: t.update({f"{VALUE}.output_scale": -torch.ones(1)}), "not positive"),
        (
            lambda t: t.update({f"{VALUE}.weight": t[f"{VALUE}.weight"].float()}),
            "F32; its scheme .* needs I8",
        ),
    ],
)
def test_wrong_tensors_of_quantized_products(
    attention: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    copy = Path(shutil.copytree(attention, tmp_path / "copy"))
    edit_tensors(copy, change)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(copy)


def test_a_scale_that_the_scheme_does_not_have(copy: Path) -> None:
    edit_tensors(copy, lambda t: t.update({f"{VALUE}.output_scale": torch.ones(1)}))
    with pytest.raises(CheckpointError, match=r"its scheme static does not have: layers\.1\.value\.output_scale"):
        Checkpoint.open(copy)


def test_a_scheme_that_does_not_fit_together(attention: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(attention, tmp_path / "copy"))
    plan = json.loads((copy / MANIFEST_FILE).read_text())["plan"]
    plan["scheme"]["overrides"] = {"layers.1.attention_products": "float"}
    edit_manifest(copy, plan=plan)
    with pytest.raises(CheckpointError, match=r"layers\.1: the output of value is quantized for attention_products"):
        Checkpoint.open(copy)


@pytest.mark.parametrize(
    ("part", "changes"), [("encoder", {"hidden": 64}), ("head", {"dense": "relu"}), ("head", {"reads": "every"})]
)
def test_a_plan_that_is_not_the_configs(copy: Path, part: str, changes: dict[str, object]) -> None:
    plan = json.loads((copy / MANIFEST_FILE).read_text())["plan"]
    edit_manifest(copy, plan={**plan, part: {**plan[part], **changes}})
    with pytest.raises(CheckpointError, match=rf"plan\.{part} is .*, but config\.json describes"):
        Checkpoint.open(copy)


def test_a_layer_in_float_against_the_scheme(copy: Path) -> None:
    """It was served silently in float32, whatever the scheme said."""

    def in_float(tensors: dict[str, torch.Tensor]) -> None:
        path = "layers.0.ffn_in"
        tensors[f"{path}.weight"] = tensors[f"{path}.weight"] * tensors.pop(f"{path}.weight_scale")[:, None]
        tensors[f"{path}.bias"] = tensors[f"{path}.bias"].float()
        for leaf in ("input_scale", "input_zero_point"):
            del tensors[f"{path}.{leaf}"]

    edit_tensors(copy, in_float)
    with pytest.raises(CheckpointError, match=r"layers\.0\.ffn_in\.weight is F32; its scheme static needs I8"):
        Checkpoint.open(copy)


def as_format_1(folder: Path) -> None:
    """Rewrite a checkpoint of a BERT in the words of format 1: module paths, and a scheme without version."""
    opened = Checkpoint.open(folder)
    modules = opened.config.family.site_modules(opened.config.spec, opened.task)

    def renamed(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            path, _, leaf = name.rpartition(".")
            tensors[f"{modules[path]}.{leaf}"] = tensors.pop(name)

    edit_tensors(folder, renamed)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    del manifest["plan"], manifest["family"]
    slots = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    table = {
        "enabled": True,
        "weight": "per_channel",
        "activation": "none",
        "requantize_output": False,
        "start_step": 0,
    }
    linear = {**table, "activation": "ema", "input_grid": "asymmetric"}
    scheme: dict[str, Any] = {"name": "static", "slots": dict.fromkeys(slots, table), "overrides": {}}
    scheme["slots"]["token_type_embeddings"] = {**table, "enabled": False}
    for slot in ("query", "key", "value", "attention_output", "ffn_in", "ffn_out", "pooler", "head"):
        scheme["slots"][slot] = {**linear, "requantize_output": slot in ("query", "key")}
    scheme |= {"ema_decay": 0.9999, "ema_debias": True, "ignore_padding": True, "share_qkv_input": True}
    (folder / MANIFEST_FILE).write_text(json.dumps({**manifest, "format_version": 1, "scheme": scheme}))


def test_a_checkpoint_of_format_1(tiny_classifier: Path, tmp_path: Path) -> None:
    """From before families, quantized products and smoothed inputs: schemes had no words for these."""
    plain, copy = tmp_path / "plain.toml", tmp_path / "int8"
    plain.write_text('base = "static"\nlinears.input = { smoothing = 0.0 }\n')
    quantize_tiny(tiny_classifier, copy, str(plain), keep_float=False)
    before = {backend: load_engine(copy, backend) for backend in ("int8", "fp32")}
    batch = TokenBatch.pack([([2, 40, 41, 3], [0] * 4)])
    as_format_1(copy)
    opened = Checkpoint.open(copy)
    assert opened.scheme == preset("static").smoothed(0)
    for backend, engine in before.items():
        assert np.array_equal(load_engine(opened, backend).infer(batch), engine.infer(batch))


def test_a_manifest_cannot_reach_outside_its_folder(copy: Path) -> None:
    (copy.parent / "secret").write_text("x")
    manifest = json.loads((copy / MANIFEST_FILE).read_text())
    manifest["files"]["../secret"] = file_entry(copy.parent / "secret")
    (copy / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="leaves the folder"):
        Checkpoint.open(copy)


def test_a_wrong_engine_fails_the_self_test(copy: Path) -> None:
    edit_tensors(copy, lambda t: t["head.output.weight"].neg_())
    opened = Checkpoint.open(copy)
    with pytest.raises(Exception, match="golden input"):
        self_test(load_engine(opened, "int8"), opened)


def test_pickles_are_refused_by_name(tiny_classifier: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_classifier, tmp_path / "pickled"))
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*refused"):
        Checkpoint.open(folder)


def test_a_float_folder_serves_fp32_only(tiny_classifier: Path) -> None:
    opened = Checkpoint.open(tiny_classifier)
    assert load_engine(opened, "fp32").backend == "fp32"
    with pytest.raises(CheckpointError, match="q8bert quantize"):
        load_engine(opened, "int8")


def test_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a folder"):
        Checkpoint.open(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        Checkpoint.open(tmp_path)
