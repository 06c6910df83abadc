"""Indices of shards against the files beside them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from q8core.errors import CheckpointError
from q8core.importing.weights import find_weights
from tests.importing.hub_folders import WEIGHTS, change_json, sharded, write_index

INDEX = "model.safetensors.index.json"
FIRST, SECOND, LAST = (f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))


@pytest.fixture
def folder(tiny_classifier: Path, tmp_path: Path) -> Path:
    return sharded(tiny_classifier, tmp_path / "it")


def places(folder: Path) -> dict[str, object]:
    return json.loads((folder / INDEX).read_text())["weight_map"]


def without_a_shard(folder: Path) -> None:
    (folder / SECOND).unlink()


def with_a_shard_too_many(folder: Path) -> None:
    shutil.copyfile(folder / FIRST, folder / "model-00004-of-00004.safetensors")


def with_a_name_too_many(folder: Path) -> None:
    write_index(folder, INDEX, {**places(folder), "bert.more": LAST})


def with_a_name_too_few(folder: Path) -> None:
    write_index(folder, INDEX, dict(list(places(folder).items())[1:]))


def with_a_name_elsewhere(folder: Path) -> None:
    name = next(iter(load_file(folder / FIRST)))
    write_index(folder, INDEX, {**places(folder), name: LAST})


def with_a_tensor_too_many(folder: Path) -> None:
    save_file({**load_file(folder / LAST), "bert.more": torch.zeros(1)}, folder / LAST)


def with_a_damaged_shard(folder: Path) -> None:
    (folder / LAST).write_bytes((folder / LAST).read_bytes()[:-9])


def with_a_pointer(folder: Path) -> None:
    (folder / LAST).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def with_a_path(folder: Path) -> None:
    write_index(folder, INDEX, {**places(folder), "x": "../other/model.safetensors"})


def with_a_number(folder: Path) -> None:
    write_index(folder, INDEX, {**places(folder), "x": 3})


def without_a_map(folder: Path) -> None:
    (folder / INDEX).write_text("[]")


def with_an_empty_map(folder: Path) -> None:
    change_json(folder / INDEX, weight_map={})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_a_shard, rf"index\.json lists {SECOND}, which the folder does not have"),
        (with_a_shard_too_many, rf"holds model-00004-of-00004\.safetensors, which {INDEX} does not list"),
        (with_a_name_too_many, rf"{LAST} does not hold what the index lists for it: it lacks bert\.more"),
        (with_a_name_too_few, "does not hold what the index lists for it: it holds "),
        (with_a_name_elsewhere, rf"{FIRST} does not hold what the index lists for it: it holds "),
        (with_a_tensor_too_many, rf"{LAST} does not hold .* it holds bert\.more"),
        (with_a_damaged_shard, rf"{LAST} is not a complete safetensors file"),
        (with_a_pointer, rf"{LAST} is a pointer of git-lfs"),
        (with_a_path, r"x is in '\.\./other/model\.safetensors'; a file beside the index is expected"),
        (with_a_number, "x is in 3; a file beside the index is expected"),
        (without_a_map, "has no weight_map"),
        (with_an_empty_map, "has no weight_map"),
    ],
)
def test_shards_and_index_must_agree(change: Callable[[Path], None], reason: str, folder: Path, refused) -> None:
    change(folder)
    assert re.search(reason, found := refused(folder)), found


def test_folders_without_weights_name_what_they_have(tiny_classifier: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_classifier, tmp_path / "it"))
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"has neither .* it has no other weights either"):
        find_weights(folder)
    for name in ("tf_model.h5", "model.onnx", "weights.pt"):
        (folder / name).touch()
    with pytest.raises(CheckpointError, match=r"it has model\.onnx, tf_model\.h5, weights\.pt$"):
        find_weights(folder)


def test_which_weights_are_taken(tmp_path: Path) -> None:
    for name in (f"{file}{end}" for file in ("pytorch_model.bin", WEIGHTS) for end in (".index.json", "")):
        if name.endswith(".json"):
            write_index(tmp_path, name, {"a": "shard"})
        (tmp_path / "shard").touch()
        (tmp_path / name).touch()
        assert find_weights(tmp_path).name == name  # each is preferred to all before
