"""Models loaded, swapped and unloaded under traffic: no request fails, and none gets another model's answer."""

from __future__ import annotations

import gc
import json
import re
import shutil
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import pytest
from fastapi import FastAPI

from q8core.errors import EngineError
from service.core import Service
from service.http.app import create_app
from service.models.registry import ModelRegistry
from service.second_opinion.cascade import Calibration, write_calibrations
from service.settings import Settings
from tests.service.running import running_server, wait_until
from tests.service.tiny_checkpoints import make_checkpoint

KEY = "an-admin-key-for-tests"
ADMIN = {"authorization": f"Bearer {KEY}"}
TEXT = "a very good film"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, classify_folder: Path, qa_folder: Path) -> Path:
    """The folder that models may come from: two classifiers, one QA model, and damaged ones."""
    folder = tmp_path_factory.mktemp("root")
    shutil.copytree(classify_folder, folder / "one")
    shutil.copytree(qa_folder, folder / "qa")
    make_checkpoint(folder / "two", "classify", seed=11)
    make_checkpoint(folder / "wrong", "classify", seed=12, golden_shift=0.5)
    shutil.copytree(folder / "two", folder / "damaged")
    weights = folder / "damaged" / "model.int8.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    return folder


class Running:
    def __init__(self, url: str, app: FastAPI) -> None:
        self.url, self.app = url, app
        self.service: Service = app.state.service

    def load(self, **body: object) -> httpx.Response:
        return httpx.post(f"{self.url}/admin/models", json=body, headers=ADMIN, timeout=240)

    def unload(self, name: str) -> httpx.Response:
        return httpx.delete(f"{self.url}/admin/models/{name}", headers=ADMIN, timeout=240)

    def models(self) -> dict[str, dict[str, object]]:
        listed = httpx.get(f"{self.url}/admin/models", headers=ADMIN).json()["models"]
        return {model["name"]: model for model in listed}

    def scores(self, backend: str = "int8", **body: object) -> tuple[float, ...]:
        answer = httpx.post(f"{self.url}/classify", json={"inputs": TEXT, "backend": backend, **body}, timeout=240)
        assert answer.status_code == 200, answer.text
        return tuple(round(entry["score"], 5) for entry in sorted(answer.json()[0], key=lambda e: e["label"]))


@contextmanager
def running(root: Path, *names: str, **chosen: object) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("Q8BERT_ADMIN_KEY", KEY)
        registry = ModelRegistry.open((), ["fp32", "int8"], "fbgemm", 1, named=[(name, root / name) for name in names])
        app = create_app(Settings(threads=1, model_root=(root,), **chosen), registry)  # type: ignore[arg-type]
    with running_server(app) as url:
        yield Running(url, app)


@pytest.fixture
def served(root: Path) -> Iterator[Running]:
    with running(root, "one", "qa") as found:
        yield found


def test_swaps_under_load_fail_no_request_and_mix_no_answers(served: Running) -> None:
    expected = {"one": {}, "two": {}}
    for backend in ("fp32", "int8"):
        expected["one"][backend] = served.scores(backend)
    assert served.load(name="other", path="two").status_code == 201
    for backend in ("fp32", "int8"):
        expected["two"][backend] = served.scores(backend, model="other")
        assert expected["two"][backend] != expected["one"][backend]
    stop = threading.Event()
    seen: list[tuple[str, tuple[float, ...]]] = []

    def client(number: int) -> None:
        backend = ("fp32", "int8")[number % 2]
        while not stop.is_set():
            seen.append((backend, served.scores(backend)))
            answer = httpx.post(f"{served.url}/compare", json={"inputs": TEXT}, timeout=240)
            assert answer.status_code == 200, answer.text

    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(client, number) for number in range(6)]
        try:
            for turn in range(6):
                answer = served.load(name="one", path=("two", "one")[turn % 2])
                assert answer.status_code == 200, answer.text
                # a request that begins after the swap is answered by the new model
                assert served.scores() == expected[("two", "one")[turn % 2]]["int8"]
        finally:
            stop.set()
        for job in jobs:
            job.result()
    assert {scores for backend, scores in seen if backend == "int8"} == {e["int8"] for e in expected.values()}
    assert {scores for backend, scores in seen if backend == "fp32"} <= {e["fp32"] for e in expected.values()}
    wait_until(lambda: set(served.models()) == {"one", "qa", "other"})


def test_requests_of_a_replaced_model_end_on_it_and_then_its_memory_is_free(
    served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = served.service.registry
    old = registry.models["one"]
    expected = served.scores()
    lane = old.lane("int8")
    engine = served.service.worker._engines[lane]
    computing, go_on = threading.Event(), threading.Event()
    real = type(engine).infer

    def infer(self: object, batch: object) -> object:
        if self is engine_ref():
            computing.set()
            assert go_on.wait(240)
        return real(self, batch)  # type: ignore[arg-type]

    engine_ref = weakref.ref(engine)
    fp32_ref = weakref.ref(old.engines["fp32"].engine)
    del engine
    monkeypatch.setattr("q8core.engines.engine.EncoderEngine.infer", infer)
    with ThreadPoolExecutor(3) as pool:
        # one is computed, one waits in the queue behind it
        first = pool.submit(served.scores)
        wait_until(computing.is_set)
        second = pool.submit(served.scores)
        wait_until(lambda: served.service.queue.waiting_requests() == 1)
        assert served.load(name="one", path="two").json()["replaced"] == old.revision
        assert [(m.name, registry.uses(m)) for m in registry.retired] == [("one", 2)]
        listed = httpx.get(f"{served.url}/admin/models", headers=ADMIN).json()["models"]
        assert [(m["state"], m["requests"]) for m in listed if m["name"] == "one"] == [("serving", 0), ("retiring", 2)]
        third = pool.submit(served.scores)
        go_on.set()
        assert first.result() == second.result() == expected
        assert third.result() != expected
    wait_until(lambda: not registry.retired)
    assert not old.engines
    del old
    wait_until(lambda: engine_ref() is None and fp32_ref() is None)
    assert lane not in served.service.queue._lanes
    assert lane not in served.service.throughput._seconds


def test_memory_is_free_without_a_garbage_collection(served: Running) -> None:
    engines = [weakref.ref(loaded.engine) for loaded in served.service.registry.models["one"].engines.values()]
    assert served.scores()
    gc.collect()
    gc.disable()
    try:
        assert served.unload("one").status_code == 200
        wait_until(lambda: all(engine() is None for engine in engines))
    finally:
        gc.enable()


def test_unloading_a_model_in_use_lets_it_end(served: Running) -> None:
    expected = served.scores()
    stop, codes = threading.Event(), list[int]()

    def client() -> None:
        while not stop.is_set():
            answer = httpx.post(f"{served.url}/classify", json={"inputs": TEXT}, timeout=240)
            codes.append(answer.status_code)
            if answer.status_code != 200:
                assert answer.json()["error_type"] == "unknown_model"
                return
            scores = tuple(round(e["score"], 5) for e in sorted(answer.json()[0], key=lambda e: e["label"]))
            assert scores == expected

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(client) for _ in range(4)]
        wait_until(lambda: len(codes) > 20)
        assert served.unload("one").status_code == 200
        for job in jobs:
            job.result(240)
        stop.set()
    assert set(codes) == {200, 404}
    assert served.unload("one").status_code == 404
    assert set(served.models()) == {"qa"}
    assert httpx.get(f"{served.url}/readyz").status_code == 200
    text = httpx.get(f"{served.url}/metrics").text
    assert 'model="one"' not in text
    assert 'model="qa"' in text
    assert served.load(path="one", name="one").status_code == 201
    assert served.scores() == expected


@pytest.mark.parametrize(
    ("path", "words"),
    [("wrong", "golden inputs on"), ("damaged", "sha256"), ("missing", "not a folder"), ("qa/..", "not below")],
)
def test_what_cannot_serve_leaves_the_old_one_serving(served: Running, root: Path, path: str, words: str) -> None:
    expected, before = served.scores(), served.models()
    answer = served.load(name="one", path=path)
    assert answer.status_code == (403 if words == "not below" else 422)
    assert answer.json()["error_type"] == ("path_not_allowed" if words == "not below" else "model_rejected")
    assert words in answer.json()["error"]
    assert "Traceback" not in answer.text
    assert (served.scores(), served.models()) == (expected, before)
    assert served.load(name="one", path=str(root / "two")).status_code == 200, "the next load is not in its way"


@pytest.mark.parametrize("path", ["/", "..", ".", "../root", "/etc", "one/../../x", "link", "loop", "a" * 4000])
def test_only_folders_below_the_roots_are_read(served: Running, root: Path, path: str, tmp_path: Path) -> None:
    for name, target in (("link", tmp_path), ("loop", root / "loop")):
        if not (root / name).is_symlink():
            (root / name).symlink_to(target)
    answer = served.load(path=path)
    allowed = path in ("loop", "a" * 4000)  # they lead nowhere
    assert (answer.status_code, answer.json()["error_type"]) == (
        (422, "model_rejected") if allowed else (403, "path_not_allowed")
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "path"),
        ({"path": ""}, "path"),
        ({"path": "a\0b"}, "null"),
        ({"path": "one", "name": ""}, "name"),
        ({"path": "one", "name": "a/b"}, "name"),
        ({"path": "one", "name": "a\n"}, "name"),
        ({"path": "one", "kind": 1}, "unknown field 'kind'"),
    ],
)
def test_wrong_bodies_are_named(served: Running, body: dict[str, object], words: str) -> None:
    answer = served.load(**body)
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
    assert words in answer.json()["error"]


def test_a_name_keeps_its_task_and_loads_go_one_by_one(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = served.load(name="qa", path="one")
    assert (answer.status_code, answer.json()["error_type"]) == (409, "model_conflict")
    started, go_on = threading.Event(), threading.Event()
    real = served.service.registry.load_model

    def slow(*arguments: object) -> object:
        started.set()
        assert go_on.wait(240)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(served.service.registry, "load_model", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(served.load, name="new", path="two")
        wait_until(started.is_set)
        assert served.load(name="new", path="one").status_code == 409
        assert served.scores(), "the others serve meanwhile"
        go_on.set()
        assert first.result().status_code == 201


def test_an_unexpected_failure_is_a_500_and_changes_nothing(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> object:
        raise RuntimeError("address 0xdead")

    monkeypatch.setattr(served.service.registry, "load_model", fail)
    answer = served.load(name="one", path="two")
    assert (answer.status_code, answer.json()["error_type"]) == (500, "internal")
    assert "0xdead" not in answer.text
    assert served.scores()


def test_shadows_of_an_unloaded_model_are_dropped(root: Path) -> None:
    with running(root, "one", "qa", shadow_rate=1.0) as served:
        shadow = served.service.shadow
        shadow._idle = lambda: False  # none runs before the model is gone
        for _ in range(3):
            served.scores()
        assert shadow.waiting() == 3
        assert served.unload("one").status_code == 200
        assert (shadow.waiting(), shadow.dropped()["unloaded"]) == (0, 3)
        shadow._idle = lambda: True
        assert httpx.post(f"{served.url}/qa", json={"question": "who?", "context": "ada"}).status_code == 200


def test_agreement_is_a_models_own_and_ends_with_it(root: Path) -> None:
    """Of two models of a task each has its own numbers; a swap begins anew, and an unloaded model leaves nothing."""

    with running(root, "one", "two", "qa", shadow_rate=1.0) as served:
        shadow, models = served.service.shadow, served.service.registry.models

        def shows(expected: dict[str, int]) -> bool:
            """Whether so many were compared of each model, by the route and by the metrics."""
            wait_until(
                lambda: sum(m["compared"] for m in shadow.agreement.describe().values()) == sum(expected.values())
            )
            found = httpx.get(f"{served.url}/agreement").json()["models"]
            text = httpx.get(f"{served.url}/metrics").text
            counted = re.findall(r'^q8bert_shadow_abs_diff_count{model="(\w+)",task="(\w+)"} (\d+)', text, re.MULTILINE)
            assert {(name, model["task"], str(model["compared"])) for name, model in found.items()} == set(counted)
            assert {name: model["revision"] for name, model in found.items()} == {
                n: m.revision for n, m in models.items()
            }
            assert set(re.findall(r'q8bert_shadow_\w+{[^}]*model="(\w+)"', text)) == set(models)
            return {name: model["compared"] for name, model in found.items()} == expected

        served.scores()
        for _ in range(2):
            served.scores(model="two")
        assert shows({"one": 1, "two": 2, "qa": 0})
        assert served.load(name="one", path="two").status_code == 200
        assert shows({"one": 0, "two": 2, "qa": 0})
        served.scores()
        assert shows({"one": 1, "two": 2, "qa": 0})
        assert served.unload("two").status_code == 200
        assert shows({"one": 1, "qa": 0})
        assert sum(shadow.dropped().values()) == 0


def test_a_model_that_answers_again_stays_while_another_needs_it(root: Path, tmp_path: Path) -> None:
    first, second = (ModelRegistry.open([root / name], ["int8"]).defaults["classify"] for name in ("one", "two"))
    numbers = (2.0, 0.99, 10, 0.9, 0.99, (0.9, 1.0), 0.1)
    file = tmp_path / "cascade.json"
    write_calibrations(file, [Calibration("one", first.revision, "classify", *numbers, "two@fp32", second.revision)])
    with running(root, "one", "two", "qa", cascade=file) as served:

        def auto() -> httpx.Response:
            return httpx.post(f"{served.url}/classify", json={"inputs": TEXT, "backend": "auto"}, timeout=240)

        def asked() -> list[str]:
            text = httpx.get(f"{served.url}/metrics").text
            return re.findall(r'^q8bert_escalations_total{model="one",result="changed",second="([\w@]+)"', text, re.M)

        assert auto().headers["x-q8bert-backend"] == "two@fp32"
        assert asked() == ["two@fp32"]
        refused = served.unload("two")
        assert (refused.status_code, refused.json()["error_type"]) == (409, "model_conflict")
        assert "'two' answers again what one is not sure of" in refused.json()["error"]
        # other weights under its name
        assert served.load(name="two", path="one").status_code == 200
        assert (auto().status_code, auto().json()["error_type"]) == (404, "unknown_backend")
        assert f"needs two@fp32 with revision {second.revision}" in auto().json()["error"]
        assert httpx.get(f"{served.url}/info").json()["cascade"]["one"]["second"] is None
        assert served.load(name="other", path="two").status_code == 201
        assert auto().headers["x-q8bert-backend"] == "other@fp32"
        assert asked() == ["two@fp32", "other@fp32"]
        assert served.unload("one").status_code == 200
        assert asked() == []
        assert "what two is not sure of" in served.unload("other").json()["error"], "it has the weights of one"
        assert [served.unload(name).status_code for name in ("two", "other")] == [200, 200]


def test_a_drain_ends_a_load(root: Path) -> None:
    with running(root, "one") as served:
        service = served.service
        real = service.registry.load_model
        began = threading.Event()

        def slow(model: object, check_stop: object) -> object:
            began.set()
            wait_until(lambda: service.lifecycle.state.value != "ready")
            return real(model, check_stop)  # type: ignore[arg-type]

        service.registry.load_model = slow  # type: ignore[method-assign,assignment]
        with ThreadPoolExecutor(1) as pool:
            load = pool.submit(served.load, path="two", name="new")
            wait_until(began.is_set)
            service.drain()
            answer = load.result()
        assert (answer.status_code, answer.json()["error_type"]) == (503, "draining")
        assert set(service.registry.models) == {"one"}


def test_engine_errors_of_the_second_backend_leave_nothing(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    import service.models.model as models

    loaded: list[weakref.ref[object]] = []
    real = models.load_engine

    def fail_on_int8(checkpoint: object, backend: str, **options: object) -> object:
        if backend == "int8":
            raise EngineError("no such instruction")
        engine = real(checkpoint, backend, **options)  # type: ignore[arg-type]
        loaded.append(weakref.ref(engine))
        return engine

    monkeypatch.setattr(models, "load_engine", fail_on_int8)
    answer = served.load(name="one", path="two")
    assert (answer.status_code, answer.json()["error"]) == (422, "no such instruction")
    assert len(loaded) == 1
    wait_until(lambda: loaded[0]() is None)
    assert json.dumps(served.models())
