"""What happens when an engine, a checkpoint or the engine thread fails."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from q8core.arrays import Logits
from q8core.engines import TokenBatch
from q8core.errors import CheckpointError, EngineError, InputError
from service.core import Service
from service.http.app import create_app
from service.lifecycle import State
from service.models.registry import ModelRegistry
from service.settings import Settings
from tests.service.conftest import open_registry
from tests.service.running import wait_until
from tests.service.tiny_checkpoints import make_checkpoint


class Poisoned:
    """A real engine that fails when a batch holds a certain token."""

    def __init__(self, engine: object, token: int, error: BaseException) -> None:
        self.engine, self.token, self.error, self.reads = engine, token, error, "first"

    def infer(self, batch: TokenBatch) -> Logits:
        if bool((batch.input_ids == self.token).any()):
            raise self.error
        return self.engine.infer(batch)  # type: ignore[attr-defined]


@contextmanager
def poisoned_client(folder: Path, error: BaseException) -> Iterator[tuple[TestClient, Service]]:
    registry = open_registry(folder, backends=("int8",))
    poison = registry.models["tiny-classify"].tokenizer.token_to_id("paris")
    load = registry.load
    registry.load = lambda stop: {k: Poisoned(e, poison, error) for k, e in load(stop).items()}  # type: ignore
    app = create_app(Settings(backends=("int8",), threads=1), registry)
    with TestClient(app, raise_server_exceptions=False) as client:
        assert app.state.service.lifecycle.wait_until_settled(240) is State.READY
        yield client, app.state.service


def test_failing_batch_is_a_500_without_internals_and_the_service_goes_on(classify_folder: Path) -> None:
    with poisoned_client(classify_folder, RuntimeError("address 0xdead")) as (client, service):
        answer = client.post("/classify", json={"inputs": ["good", "paris"]})
        assert (answer.status_code, answer.json()["error_type"]) == (500, "internal")
        assert "0xdead" not in answer.text
        assert client.post("/classify", json={"inputs": "good"}).status_code == 200
        assert client.get("/livez").status_code == client.get("/readyz").status_code == 200
        assert service.queue.waiting_tokens() == 0


def test_dead_engine_thread_shows_in_the_probes_and_leaves_nobody_waiting(classify_folder: Path) -> None:
    with poisoned_client(classify_folder, SystemExit(1)) as (client, service):
        answer = client.post("/classify", json={"inputs": "paris"})
        assert (answer.status_code, answer.json()["error_type"]) == (503, "engine_dead")
        wait_until(lambda: not service.worker.is_alive())
        for path in ("/livez", "/readyz", "/health"):
            probe = client.get(path)
            assert (probe.status_code, probe.json()["error_type"]) == (503, "engine_dead")
        again = client.post("/classify", json={"inputs": "good"})
        assert (again.status_code, again.json()["error_type"]) == (503, "engine_dead")
        assert (
            'q8bert_engine_up{backend="int8",model="tiny-classify",task="classify"} 0.0' in client.get("/metrics").text
        )


def test_task_without_a_checkpoint_is_unknown(classify_folder: Path) -> None:
    with poisoned_client(classify_folder, RuntimeError()) as (client, _):
        answer = client.post("/qa", json={"question": "who?", "context": "ada"})
        assert (answer.status_code, answer.json()["error_type"]) == (404, "unknown_model")
        answer = client.post("/classify", json={"inputs": "good", "backend": "fp32"})
        assert (answer.status_code, answer.json()["error_type"]) == (404, "unknown_backend")


def test_before_and_after_its_time_the_service_answers_503(classify_folder: Path) -> None:
    registry = open_registry(classify_folder, backends=("int8",))
    app = create_app(Settings(backends=("int8",), threads=1), registry)
    service: Service = app.state.service
    load = registry.load

    def load_when_probed(stop: object) -> object:
        wait_until(lambda: service.metrics.registry.get_sample_value(*counted) == 1)
        return load(stop)  # type: ignore[arg-type]

    counted = ("q8bert_rejected_total", {"task": "classify", "reason": "not_ready"})
    registry.load = load_when_probed  # type: ignore[method-assign,assignment]
    with TestClient(app) as client:
        assert client.get("/livez").status_code == 200
        assert client.get("/readyz").json()["error_type"] == "not_ready"
        early = client.post("/classify", json={"inputs": "good"})
        assert (early.status_code, early.headers["retry-after"]) == (503, "1")
        assert service.lifecycle.wait_until_settled(240) is State.READY
        assert client.get("/readyz").json() == {"status": "ready"}
        service.drain()
        assert client.get("/livez").status_code == 200
        assert client.get("/readyz").json()["error_type"] == "draining"
        late = client.post("/classify", json={"inputs": "good"})
        assert (late.status_code, late.json()["error_type"], late.headers["retry-after"]) == (503, "draining", "1")
    assert not service.worker.is_alive()


def test_failed_self_test_fails_the_start(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "wrong", "classify", golden_shift=0.5)
    service = Service(Settings(threads=1), open_registry(folder))
    service.start()
    assert service.lifecycle.wait_until_settled(240) is State.FAILED
    assert isinstance(service.lifecycle.failure, EngineError)
    assert service.stop(240)


def test_stop_during_start_up_ends_the_thread(classify_folder: Path) -> None:
    registry = open_registry(classify_folder)
    service = Service(Settings(threads=1), registry)
    load = registry.load

    def stop_first(check_stop: object) -> object:
        service.worker.request_stop()
        return load(check_stop)  # type: ignore[arg-type]

    registry.load = stop_first  # type: ignore[method-assign,assignment]
    service.start()
    assert service.stop(240)
    assert service.lifecycle.state is State.STOPPED
    assert not registry.models["tiny-classify"].engines


def test_two_checkpoints_of_one_name_are_refused(classify_folder: Path) -> None:
    with pytest.raises(InputError, match="both called 'tiny-classify'"):
        open_registry(classify_folder, classify_folder)


def test_tokenizer_larger_than_the_model_is_refused(classify_folder: Path, qa_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "float"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(classify_folder / name, folder)
    text = (folder / "tokenizer.json").read_text().replace('"who":', '"extra1":', 1)
    (folder / "tokenizer.json").write_text(text)
    ModelRegistry.open([folder], ["fp32"])  # the same size: accepted, and served as a plain Hugging Face folder
    larger = text.replace('"extra1":', '"extra2": 5000, "extra3": 5001, "extra1":', 1)
    (folder / "tokenizer.json").write_text(larger)
    with pytest.raises(CheckpointError, match="rows"):
        ModelRegistry.open([folder], ["fp32"])


def test_float_folder_has_no_int8(classify_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "float"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(classify_folder / name, folder)
    service = Service(Settings(threads=1), open_registry(folder))
    service.start()
    assert service.lifecycle.wait_until_settled(240) is State.FAILED
    assert "q8bert quantize" in str(service.lifecycle.failure)
    assert service.stop(240)
