from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from q8core.checkpoint import Checkpoint
from q8core.checkpoint.manifest import FLOAT_FILE, INT8_FILE, MANIFEST_FILE, file_entry
from q8core.engines import load_engine, self_test
from q8core.errors import CheckpointError, SchemeError
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
    edit_tensors(copy, lambda t: t.update({"classifier.wieght": t.pop("classifier.weight")}))
    with pytest.raises(CheckpointError, match=r"lacks the tensor classifier\.weight"):
        Checkpoint.open(copy)


def test_an_unknown_key(copy: Path) -> None:
    edit_tensors(copy, lambda t: t.update({"extra": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"no part of the model uses: extra"):
        Checkpoint.open(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["bert.embeddings.LayerNorm.weight"].fill_(float("nan")), "NaN"),
        (lambda t: t["classifier.weight"].fill_(-128), "-128"),
        (lambda t: t["classifier.input_scale"].zero_(), "not positive"),
        (lambda t: t.update({"classifier.bias": t["classifier.bias"].float()}), "F32; allowed: I32"),
        (lambda t: t.update({"classifier.bias": t["classifier.bias"][:1].clone()}), r"shape \(1,\)"),
        (lambda t: t.pop("classifier.weight_scale"), "lacks the tensor classifier.weight_scale"),
        (lambda t: t.pop("classifier.input_scale"), "I32; allowed: F32"),
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
        ({"scheme": {}}, "q8bert.json: missing scheme key 'name'"),
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


VALUE = "bert.encoder.layer.1.attention.self.value"


def test_quantized_attention_products_travel_by_file(attention: Path) -> None:
    opened = Checkpoint.open(attention)
    assert opened.scheme == preset("static-attention")
    assert f"{VALUE}.output_scale" in opened.int8_tensors()
    for backend in ("int8", "fp32"):
        assert self_test(load_engine(opened, backend), opened, tolerance=1e-4).labels_equal


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{VALUE}.output_scale"), r"lacks the tensor .*layer\.1.*value\.output_scale"),
        (lambda t: t.update({f"{VALUE}.output_scale": torch.ones(2)}), r"shape \(2,\)"),
        (lambda t: t.update({f"{VALUE}.output_scale": -torch.ones(1)}), "not positive"),
        (lambda t: t.update({f"{VALUE}.weight": t[f"{VALUE}.weight"].float()}), "F32; allowed: I8"),
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
    with pytest.raises(CheckpointError, match=r"value\.output_scale, which its scheme static does not have"):
        Checkpoint.open(copy)


def test_a_scheme_that_does_not_fit_together(attention: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(attention, tmp_path / "copy"))
    scheme = json.loads((copy / MANIFEST_FILE).read_text())["scheme"]
    edit_manifest(copy, scheme={**scheme, "overrides": {VALUE.removesuffix(".value"): {"enabled": False}}})
    with pytest.raises(SchemeError, match=r"the value at .*layer\.1\.attention\.self is requantized"):
        Checkpoint.open(copy)


def test_a_manifest_from_before_quantized_products(copy: Path) -> None:
    scheme = json.loads((copy / MANIFEST_FILE).read_text())["scheme"]
    del scheme["slots"]["attention_products"]
    edit_manifest(copy, scheme=scheme)
    assert Checkpoint.open(copy).scheme == preset("static")


def test_a_manifest_cannot_reach_outside_its_folder(copy: Path) -> None:
    (copy.parent / "secret").write_text("x")
    manifest = json.loads((copy / MANIFEST_FILE).read_text())
    manifest["files"]["../secret"] = file_entry(copy.parent / "secret")
    (copy / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="leaves the folder"):
        Checkpoint.open(copy)


def test_a_wrong_engine_fails_the_self_test(copy: Path) -> None:
    edit_tensors(copy, lambda t: t["classifier.weight"].neg_())
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
