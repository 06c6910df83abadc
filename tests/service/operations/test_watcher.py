"""Folders of served models that change: new versions are swapped in, what cannot serve is left alone."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import pytest
from fastapi.testclient import TestClient

from service.core import Service
from service.http.app import create_app
from service.lifecycle import State
from service.models.folder_state import folder_state
from service.models.registry import ModelRegistry
from service.operations.model_admin import ModelAdmin
from service.operations.watcher import Watcher
from service.settings import Settings
from tests.service.running import running_server, wait_until
from tests.service.tiny_checkpoints import make_checkpoint

WEIGHTS = "model.int8.safetensors"


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory, classify_folder: Path, qa_folder: Path) -> dict[str, Path]:
    """Good checkpoints of both tasks, and one that computes something else than it says."""
    folder = tmp_path_factory.mktemp("versions")
    return {
        "one": classify_folder,
        "two": make_checkpoint(folder / "two", "classify", seed=11),
        "wrong": make_checkpoint(folder / "wrong", "classify", seed=12, golden_shift=0.5),
        "qa": qa_folder,
    }


def open_registry(**folders: Path) -> ModelRegistry:
    return ModelRegistry.open((), ["int8"], "fbgemm", 1, named=list(folders.items()))


class Watched:
    """A running service whose watcher looks when the test says so."""

    def __init__(self, client: TestClient, service: Service, admin: ModelAdmin) -> None:
        self.client, self.service, self.admin = client, service, admin
        self.watcher = Watcher(admin)
        self.opened: list[Path] = []

    def look(self, times: int = 1) -> None:
        assert self.client.portal is not None
        for _ in range(times):
            self.client.portal.call(self.watcher.look)

    def revision(self, name: str = "it") -> str:
        revision = self.service.registry.models[name].revision
        answer = self.client.post("/classify", json={"inputs": "a film", "model": name})
        assert (answer.status_code, answer.headers["x-q8bert-model"]) == (200, name)
        return revision


@contextmanager
def watched(**folders: Path) -> Iterator[Watched]:
    app = create_app(Settings(threads=1, backends=("int8",)), open_registry(**folders))
    with TestClient(app) as client, pytest.MonkeyPatch.context() as patch:
        assert app.state.service.lifecycle.wait_until_settled(240) is State.READY
        found = Watched(client, app.state.service, app.state.admin)
        import service.operations.model_admin as module

        real = module.open_model

        def open_model(path: Path, *rest: object) -> object:
            found.opened.append(path)
            return real(path, *rest)

        patch.setattr(module, "open_model", open_model)
        yield found


@pytest.fixture
def served(versions: dict[str, Path], tmp_path: Path) -> Iterator[Watched]:
    """One model, whose folder a test may change."""
    shutil.copytree(versions["one"], tmp_path / "it")
    with watched(it=tmp_path / "it") as found:
        yield found


def rewrite(source: Path, folder: Path) -> None:
    for file in source.iterdir():
        shutil.copyfile(file, folder / file.name)


def test_every_way_of_replacing_a_folder_is_seen(versions: dict[str, Path], tmp_path: Path) -> None:
    for name in ("renamed", "rewritten", "still"):
        shutil.copytree(versions["one"], tmp_path / name)
    (tmp_path / "link").symlink_to(versions["one"])
    names = ("renamed", "rewritten", "link")
    with watched(**{name: tmp_path / name for name in (*names, "still")}) as served:
        first = served.revision("link")
        served.look(3)
        assert served.opened == []
        shutil.copytree(versions["two"], tmp_path / "next")
        (tmp_path / "renamed").rename(tmp_path / "old")
        (tmp_path / "next").rename(tmp_path / "renamed")
        rewrite(versions["two"], tmp_path / "rewritten")
        (tmp_path / "next").symlink_to(versions["two"])
        (tmp_path / "next").replace(tmp_path / "link")
        served.look()
        assert {served.revision(name) for name in names} == {first}, "it waits for a second look"
        served.look()
        (second,) = {served.revision(name) for name in names}
        assert second != first
        assert served.revision("still") == first
        served.look(2)
        assert sorted(served.opened) == sorted(tmp_path / name for name in names)


def damage(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / WEIGHTS).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder, versions: damage(folder), "does not match its sha256"),
        (lambda folder, versions: rewrite(versions["wrong"], folder), "golden inputs"),
        (lambda folder, versions: rewrite(versions["qa"], folder), "is a model for classify"),
        (lambda folder, versions: shutil.rmtree(folder), "is not a folder"),
    ],
    ids=["damaged", "wrong", "other-task", "gone"],
)
def test_what_cannot_serve_is_refused_once_and_read_again_when_it_changes(
    served: Watched,
    versions: dict[str, Path],
    caplog: pytest.LogCaptureFixture,
    change: Callable[[Path, dict[str, Path]], None],
    words: str,
) -> None:
    folder, first = served.service.registry.models["it"].checkpoint.path, served.revision()
    change(folder, versions)
    with caplog.at_level(logging.WARNING):
        served.look(5)
    assert len(served.opened) == 1
    assert words in caplog.text
    assert f"it ({first}) goes on" in caplog.text
    assert served.revision() == first
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(versions["two"], folder)
    served.look(2)
    assert served.revision() != first
    assert len(served.opened) == 2


def test_a_folder_that_is_being_copied_is_left_alone(served: Watched, versions: dict[str, Path]) -> None:
    folder, first = served.service.registry.models["it"].checkpoint.path, served.revision()
    for file in sorted(versions["two"].iterdir()):
        content = file.read_bytes()
        for share in (3, 2, 1):
            (folder / file.name).write_bytes(content[: len(content) // share])
            served.look()
            assert (served.opened, served.revision()) == ([], first)
    served.look()
    assert served.revision() != first


def while_loading(served: Watched, happens: Callable[[], object]) -> None:
    """Let something happen the next time that engines have been loaded."""
    registry = served.service.registry
    real = registry.load_model

    def load_model(*arguments: object) -> object:
        registry.load_model = real  # type: ignore[method-assign]
        engines = real(*arguments)  # type: ignore[arg-type]
        happens()
        return engines

    registry.load_model = load_model  # type: ignore[method-assign,assignment]


def test_files_that_change_while_they_are_read_are_read_again(served: Watched, versions: dict[str, Path]) -> None:
    folder, first = served.service.registry.models["it"].checkpoint.path, served.revision()
    rewrite(versions["two"], folder)
    while_loading(served, lambda: rewrite(versions["two"], folder))
    served.look(2)
    assert (len(served.opened), served.revision()) == (1, first)
    served.look(2)
    assert len(served.opened) == 2
    assert served.revision() != first


def test_a_model_that_is_unloaded_meanwhile_does_not_come_back(served: Watched, versions: dict[str, Path]) -> None:
    rewrite(versions["two"], served.service.registry.models["it"].checkpoint.path)
    portal = served.client.portal
    assert portal is not None
    while_loading(served, lambda: portal.call(served.admin.unload, "it"))
    served.look(4)
    assert len(served.opened) == 1
    assert served.service.registry.models == {}
    assert served.client.post("/classify", json={"inputs": "a film"}).status_code == 404


def test_an_admins_load_goes_first(served: Watched, versions: dict[str, Path]) -> None:
    first = served.revision()
    rewrite(versions["two"], served.service.registry.models["it"].checkpoint.path)
    served.admin._loading = "other"
    served.look(3)
    assert served.opened == []
    served.admin._loading = None
    served.look()
    assert served.revision() != first


def test_unexpected_failures_end_no_watch(
    served: Watched, versions: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder, first = served.service.registry.models["it"].checkpoint.path, served.revision()
    rewrite(versions["two"], folder)

    def fail() -> None:
        raise RuntimeError("no such thing")

    while_loading(served, fail)
    served.look(4)
    assert "could not be loaded" in caplog.text
    assert (len(served.opened), served.revision()) == (1, first)
    (folder / "config.json").touch()
    served.look(2)
    assert served.revision() != first


def test_the_state_of_no_folder_is_empty(tmp_path: Path) -> None:
    assert folder_state(tmp_path / "none") == folder_state(tmp_path) == ()
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    assert [name for name, *_ in folder_state(tmp_path)] == ["file"]


def test_a_file_of_the_same_size_and_time_of_writing_is_another(tmp_path: Path) -> None:
    """What cp -p or a reproducible archive leaves where it writes over the old files."""
    file = tmp_path / "file"
    file.write_text("old")
    before, facts = folder_state(tmp_path), file.stat()
    time.sleep(0.05)  # longer than the file system's clock takes to go on
    file.write_text("new")
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    after = folder_state(tmp_path)
    assert after[0][:-1] == before[0][:-1]
    assert after != before


def test_a_running_server_swaps_without_losing_a_request(versions: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "it").symlink_to(versions["one"])
    settings = Settings(threads=1, backends=("int8",), watch_s=0.05)
    app = create_app(settings, open_registry(it=tmp_path / "it"))
    models = app.state.service.registry.models
    stop, codes = threading.Event(), list[int]()
    with running_server(app) as url, ThreadPoolExecutor(1) as pool, httpx.Client(base_url=url, timeout=240) as client:
        first = models["it"].revision

        def ask() -> None:
            while not stop.is_set():
                codes.append(client.post("/classify", json={"inputs": "a film"}).status_code)

        job = pool.submit(ask)
        try:
            for version, same in (("two", False), ("one", True)):
                (tmp_path / "next").symlink_to(versions[version])
                (tmp_path / "next").replace(tmp_path / "it")
                wait_until(lambda same=same: (models["it"].revision == first) is same)
            seen = len(codes)
            wait_until(lambda: len(codes) > seen)
        finally:
            stop.set()
        job.result(240)
    assert set(codes) == {200}
