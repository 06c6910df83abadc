from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from q8core.cache import CACHE_VARIABLE
from q8core.tasks.examples import REGRESSION_LABELS
from service.core import Service
from service.http.app import create_app
from service.lifecycle import State
from service.models.registry import ModelRegistry
from service.settings import Settings
from tests.service.tiny_checkpoints import make_checkpoint


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("Q8BERT_") and name != CACHE_VARIABLE:
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def classify_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "tiny-classify", "classify", seed=1)


@pytest.fixture(scope="session")
def qa_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "tiny-qa", "qa", seed=2)


@pytest.fixture(scope="session")
def number_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A regression."""
    folder = tmp_path_factory.mktemp("models") / "tiny-number"
    return make_checkpoint(folder, "classify", seed=3, labels=REGRESSION_LABELS)


def open_registry(*folders: Path, backends: tuple[str, ...] = ("fp32", "int8")) -> ModelRegistry:
    return ModelRegistry.open(folders, backends, kernel="fbgemm", threads=1)


@pytest.fixture(scope="session")
def app(classify_folder: Path, qa_folder: Path) -> FastAPI:
    settings = Settings(payload_limit=200_000, threads=1)
    return create_app(settings, open_registry(classify_folder, qa_folder))


@pytest.fixture(scope="session")
def client(app: FastAPI) -> Iterator[TestClient]:
    """A ready service with both tasks on both backends; shared, so tests must leave it as it was."""
    with TestClient(app, raise_server_exceptions=False) as client:
        service: Service = app.state.service
        assert service.lifecycle.wait_until_settled(240) is State.READY, service.lifecycle.failure
        yield client


@pytest.fixture
def service(client: TestClient, app: FastAPI) -> Service:
    return app.state.service
