"""Tensors of safetensors files as arrays, against those that torch reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from q8core.checkpoint.tensors import TensorFile, write_tensors
from q8core.errors import CheckpointError

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def test_every_type_and_shape_is_read_as_it_is(tmp_path: Path) -> None:
    shapes = ((), (1,), (3,), (0,), (2, 5), (2, 0, 3), (2, 3, 4))
    numbers = torch.arange(24)
    tensors = {
        f"{name}{shape}": numbers[: int(np.prod(shape))].reshape(shape).to(dtype).clone()
        for name, dtype in TYPES.items()
        for shape in shapes
    }
    save_file(tensors, tmp_path / "all", {"format": "pt"})
    file = TensorFile(tmp_path / "all")
    assert sorted(file) == sorted(tensors)
    for name, tensor in tensors.items():
        found = file[name]
        assert (file.dtype(name), file.shape(name)) == (name.partition("(")[0], tuple(tensor.shape))
        assert found.dtype == tensor.numpy().dtype
        assert found.shape == file.shape(name)
        assert found.tobytes() == tensor.numpy().tobytes()
    write_tensors(tmp_path / "again", dict(file))
    assert (tmp_path / "again").read_bytes() == (tmp_path / "all").read_bytes()


def test_every_bfloat16_is_widened_to_its_bits(tmp_path: Path) -> None:
    """All 65,536 of them: subnormals, infinities and NaNs with what they carry."""
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16).reshape(256, 256)
    save_file({"halves": halves}, tmp_path / "file")
    found = TensorFile(tmp_path / "file")["halves"]
    assert found.dtype == np.float32
    assert found.shape == (256, 256)
    assert found.view(np.int32).tobytes() == halves.float().view(torch.int32).numpy().tobytes()


def test_what_is_read_is_nobodys_but_the_readers(tmp_path: Path) -> None:
    write_tensors(tmp_path / "file", {"a": np.ones(3, np.float32)})
    file = TensorFile(tmp_path / "file")
    file["a"].fill(7)
    assert file["a"].tolist() == [1, 1, 1]


def test_types_without_an_array_are_refused_when_they_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, dtype=torch.float8_e4m3fn), "b": torch.ones(1)}, tmp_path / "file")
    file = TensorFile(tmp_path / "file")
    assert file.dtype("a") == "F8_E4M3"
    assert file["b"].tolist() == [1]
    with pytest.raises(CheckpointError, match="a is F8_E4M3; allowed: F64, F32"):
        file["a"]


def test_a_file_that_becomes_shorter_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "file", {"a": np.ones(100, np.float32)})
    file = TensorFile(tmp_path / "file")
    content = (tmp_path / "file").read_bytes()
    (tmp_path / "file").write_bytes(content[:-4])
    with pytest.raises(CheckpointError, match="has become shorter since it was opened"):
        file["a"]
    with pytest.raises(CheckpointError, match="is not a complete safetensors file"):
        TensorFile(tmp_path / "file")
