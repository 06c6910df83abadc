"""Hub ids: which files are fetched, and one sentence where there is no hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects

from q8core.errors import InputError
from q8core.importing import hub
from q8core.importing.hub import fetch
from tests.importing.hub_folders import WEIGHTS, copied, pickled, sharded

Fetched = Callable[..., set[str]]
EXTRAS = (
    "modeling_x.py", "tf_model.h5", "onnx/model.onnx", "onnx/spm.model", "1_Pooling/config.json", "README.md",
    "model.fp16.safetensors", "training_args.bin", "pytorch_model.fp16.bin", "spiece.model",
)  # fmt: skip


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fetched:
    """Fetch a folder as if it lay on the hub; return the names of the files that came."""

    def ask(remote: Path) -> set[str]:
        for name in EXTRAS:
            (remote / name).parent.mkdir(exist_ok=True)
            (remote / name).touch()
        local = tmp_path / f"snapshot of {remote.name}"

        def snapshot_download(repo_id: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
            assert repo_id == "someone/model"
            names = [str(path.relative_to(remote)) for path in remote.rglob("*") if path.is_file()]
            for name in filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
                (local / name).parent.mkdir(parents=True, exist_ok=True)
                (local / name).write_bytes((remote / name).read_bytes())
            return str(local)

        monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
        assert fetch("someone/model") == local
        return {str(path.relative_to(local)) for path in local.rglob("*") if path.is_file()}

    return ask


def test_safetensors_before_pickles_and_never_code(fetched: Fetched, tiny_classifier: Path, tmp_path: Path) -> None:
    files = {"config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model"}
    both = pickled(tiny_classifier, tmp_path / "both")
    (both / WEIGHTS).write_bytes((tiny_classifier / WEIGHTS).read_bytes())
    assert fetched(both) == files | {WEIGHTS}
    assert fetched(pickled(tiny_classifier, tmp_path / "pickle")) == files | {"pytorch_model.bin"}
    parts = {f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)}
    assert fetched(sharded(tiny_classifier, tmp_path / "shards")) == files | parts | {"model.safetensors.index.json"}
    parts = {f"pytorch_model-0000{number}-of-00003.bin" for number in (1, 2, 3)}
    index = {"pytorch_model.bin.index.json"}
    assert fetched(sharded(tiny_classifier, tmp_path / "pickles", pickles=True)) == files | parts | index


def test_a_folder_is_itself(tiny_classifier: Path, tmp_path: Path) -> None:
    folder = copied(tiny_classifier, tmp_path / "it")
    assert fetch(str(folder)) == folder


def test_no_hub_and_no_folder() -> None:
    with pytest.raises(InputError, match=r"'nobody/nothing' is no folder, and the hub cannot be reached"):
        fetch("nobody/nothing")
    with pytest.raises(InputError, match=r"'\./no/such/folder' is neither a folder nor to be had from the hub"):
        fetch("./no/such/folder")
