"""The file of packed weights: the same answers as from private memory, and no other file is ever believed."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from q8core import cache
from q8core.arrays import Array, address
from q8core.checkpoint import Checkpoint
from q8core.engines import TokenBatch, build_engine, load_engine
from q8core.engines.engine import EncoderEngine
from q8core.errors import CheckpointError
from q8core.quant import Plan, preset
from tests.engines.conftest import Simulated
from tests.engines.random_checkpoint import write_random

SHA256 = "ab" * 32


class Counting(Mapping[str, Array]):
    """Tensors that note which were read."""

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self.tensors, self.read = tensors, set[str]()

    def __getitem__(self, name: str) -> Array:
        self.read.add(name)
        return self.tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


@pytest.fixture(params=["classifier", "answerer"])
def simulated(request: pytest.FixtureRequest) -> Simulated:
    return request.getfixturevalue(request.param)


def load(
    simulated: Simulated,
    sha256: str | None = SHA256,
    tensors: Mapping[str, Array] | None = None,
    plan: Plan | None = None,
) -> EncoderEngine:
    return build_engine(plan or simulated.plan, tensors or simulated.tensors, "native", sha256=sha256)


def answers(engine: EncoderEngine) -> Array:
    ids = np.arange(60) % 50
    return engine.infer(TokenBatch(ids, ids % 2, (7, 1, 52)))


def packed_file(folder: Path) -> Path:
    (path,) = folder.glob("*.packed")
    return path


def test_mapped_and_private_weights_give_the_same_bits(simulated: Simulated, empty_cache: Path) -> None:
    private, first, second = load(simulated, None), load(simulated), load(simulated)
    assert np.array_equal(answers(first), answers(private))
    assert np.array_equal(answers(second), answers(private))
    assert first.memory().weights == second.memory().weights == private.memory().weights
    assert first.memory().scales == second.memory().scales == private.memory().scales
    facts = [each.describe() for each in (private, first, second)]
    assert [each["weights_memory"] for each in facts] == ["private", "shared", "shared"]
    endings = ("not from a checkpoint's file", "packed by this load", "packed by an earlier load")
    for each, ending in zip(facts, endings, strict=True):
        assert str(each["weights_note"]).endswith(ending)


def test_a_later_load_reads_no_weights(simulated: Simulated, empty_cache: Path) -> None:
    first, second = Counting(simulated.tensors), Counting(simulated.tensors)
    load(simulated, tensors=first)
    load(simulated, tensors=second)
    assert first.read == set(simulated.tensors)
    assert second.read == set()


def test_every_section_is_aligned(simulated: Simulated, empty_cache: Path) -> None:
    tensors = load(simulated).model.packed.tensors  # type: ignore[attr-defined]
    assert len(tensors) > 20
    assert all(address(tensor) % 64 == 0 for tensor in tensors)


def test_the_file_outlives_its_name(simulated: Simulated, empty_cache: Path) -> None:
    engine, expected = load(simulated), answers(load(simulated, None))
    shutil.rmtree(empty_cache)
    assert np.array_equal(answers(engine), expected)
    assert np.array_equal(answers(load(simulated)), expected)
    assert packed_file(empty_cache)


@pytest.mark.parametrize("place", [0.0, 0.001, 0.3, 0.5, 0.9, 0.99, 0.9999])
def test_an_altered_byte_is_found_and_the_file_made_again(
    classifier: Simulated, empty_cache: Path, caplog: pytest.LogCaptureFixture, place: float
) -> None:
    expected = answers(load(classifier))
    path = packed_file(empty_cache)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.unlink()
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, "q8core.cache"):
        engine = load(classifier)
    assert "not trusted" in caplog.text
    assert np.array_equal(answers(engine), expected)
    assert str(engine.describe()["weights_note"]).endswith("packed by this load")
    assert str(load(classifier).describe()["weights_note"]).endswith("packed by an earlier load")


@pytest.mark.parametrize("size", [0, 10, 100, -1, -32, -4096])
def test_a_truncated_file_is_made_again(
    classifier: Simulated, empty_cache: Path, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    expected = answers(load(classifier))
    path = packed_file(empty_cache)
    content = path.read_bytes()[:size]
    path.unlink()
    path.write_bytes(content)
    assert np.array_equal(answers(load(classifier)), expected)
    assert "truncated, altered or foreign" in caplog.text
    assert path.stat().st_size > len(content)


def test_a_file_of_another_key_is_not_taken(
    classifier: Simulated, empty_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Complete and with the right digest, but of other weights."""
    doubled = {**classifier.tensors, "head.output.bias": classifier.tensors["head.output.bias"] * 2}
    load(classifier, "cd" * 32, doubled)
    other = packed_file(empty_cache).rename(empty_cache / "other")
    expected = answers(load(classifier))
    path = packed_file(empty_cache)
    path.unlink()
    other.rename(path)
    assert np.array_equal(answers(load(classifier)), expected)
    assert "made for another key" in caplog.text


def test_what_decides_the_bytes_is_in_the_key(
    monkeypatch: pytest.MonkeyPatch, classifier: Simulated, empty_cache: Path
) -> None:
    load(classifier)
    load(classifier, "cd" * 32)
    plan, scheme = classifier.plan, preset("q8bert")
    load(classifier, plan=Plan.of(replace(plan.spec, norm_epsilon=2 * plan.spec.norm_epsilon), plan.head, scheme))
    monkeypatch.setattr("q8core.engines.memory.packed_file.code_digest", lambda: "another release")
    load(classifier)
    assert len(list(empty_cache.glob("*.packed"))) == 4


def test_an_unusable_folder_is_said_and_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, classifier: Simulated, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    engines = [load(classifier), load(classifier)]
    assert np.array_equal(answers(engines[0]), answers(load(classifier, None)))
    for engine in engines:
        assert engine.describe()["weights_memory"] == "private"
        assert engine.describe()["weights_note"] == "the cache is unusable: Not a directory"
    assert caplog.text.count("cache unusable") == 1
    assert str(tmp_path) in caplog.text


def test_a_full_disk_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, classifier: Simulated, empty_cache: Path
) -> None:
    from q8core.engines.memory.packed_file import FileStore

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FileStore, "finish", full)
    engine = load(classifier)
    assert engine.describe()["weights_note"] == "the cache is unusable: No space left on device"
    assert list(empty_cache.iterdir()) == []
    assert np.isfinite(answers(engine)).all()


def test_a_tensor_too_many_is_refused_and_nothing_kept(classifier: Simulated, empty_cache: Path) -> None:
    with pytest.raises(CheckpointError, match=r"fit no part.*layers\.typo"):
        load(classifier, tensors={**classifier.tensors, "layers.typo": np.zeros(1, np.float32)})
    assert list(empty_cache.iterdir()) == []


def test_a_checkpoint_is_shared_on_the_native_kernel_alone(empty_cache: Path, tmp_path: Path) -> None:
    folder = write_random(
        tmp_path / "model", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    kinds = {("int8", "native"): "shared", ("int8", "onednn"): "private", ("fp32", "auto"): "private"}
    for (backend, kernel), memory in kinds.items():
        assert load_engine(Checkpoint.open(folder), backend, kernel).describe()["weights_memory"] == memory
