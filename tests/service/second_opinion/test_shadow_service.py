"""The shadow comparison in a running service: its numbers, its manners, and what it never tells."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from q8core.arrays import Logits
from q8core.engines import TokenBatch
from q8core.errors import InputError
from service.core import Service
from service.http.app import create_app
from service.lifecycle import State
from service.queueing.batcher import Lane
from service.settings import Settings
from service.telemetry.shadow_metrics import DROPS
from tests.service.conftest import open_registry
from tests.service.http.test_metrics_route import samples
from tests.service.running import wait_until

CONTEXT = "The book is very good. It was written by Ada in Paris. " * 5


class Watched:
    """A real engine that notes what it computes and can be held or made to fail."""

    log: list[tuple[str, int]]

    def __init__(self, engine: object, backend: str, log: list[tuple[str, int]]) -> None:
        self.engine, self.backend, self.log = engine, backend, log
        self.error: Exception | None = None
        self.open = threading.Event()
        self.open.set()
        self.computing = threading.Event()

    def infer(self, batch: TokenBatch) -> Logits:
        self.computing.set()
        assert self.open.wait(240)
        self.log.append((self.backend, len(batch.input_ids)))
        if self.error is not None:
            raise self.error
        return self.engine.infer(batch)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self.engine, name)


class Running:
    def __init__(self, client: TestClient, service: Service, engines: dict[tuple[str, str], Watched]) -> None:
        self.client, self.service, self.engines = client, service, engines

    def settled(self) -> bool:
        """Whether every sampled request has been compared or dropped."""
        sampled = sum(self.service.shadow.dropped().values()) + self.compared_requests()
        return not self.service.shadow.waiting() and sampled == self.sampled

    sampled = 0

    def compared_requests(self) -> int:
        found = self.client.get("/agreement").json()["models"].values()
        return len({case["request_id"] for model in found for case in model["worst"]})

    def ask(self, path: str, **body: object) -> dict[str, object]:
        answer = self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        self.sampled += 1
        return answer.json()


@contextmanager
def serve(*folders: Path, **chosen: object) -> Iterator[Running]:
    registry = open_registry(*folders)
    load = registry.load
    log: list[tuple[str, int]] = []
    engines: dict[Lane, Watched] = {}

    def watched_load(stop: object) -> dict[Lane, Watched]:
        engines.update({lane: Watched(e, lane.backend, log) for lane, e in load(stop).items()})  # type: ignore[arg-type]
        return engines

    registry.load = watched_load  # type: ignore[method-assign,assignment]
    app = create_app(Settings(threads=1, **{"shadow_rate": 1, **chosen}), registry)  # type: ignore[arg-type]
    with TestClient(app, raise_server_exceptions=False) as client:
        assert app.state.service.lifecycle.wait_until_settled(240) is State.READY
        yield Running(client, app.state.service, {lane.labels: engine for lane, engine in engines.items()})


def test_each_request_is_compared_once_with_the_same_ids(classify_folder: Path, qa_folder: Path) -> None:
    with serve(classify_folder, qa_folder) as running:
        texts = ["the film is good", "bad", "ada wrote a very good book"]
        running.ask("/classify", inputs=texts, parameters={"top_k": 1})
        running.ask("/classify", inputs="not good", backend="fp32", parameters={"function_to_apply": "none"})
        running.ask("/qa", question="who wrote it?", context=CONTEXT, parameters={"top_k": 3})
        wait_until(running.settled)
        found = running.client.get("/agreement").json()
        tasks = {model["task"]: model for model in found["models"].values()}
        assert (tasks["classify"]["compared"], tasks["qa"]["compared"]) == (4, 1)
        assert found["dropped"] == dict.fromkeys(DROPS, 0)
        for task, case in [(t, c) for t in tasks for c in tasks[t]["worst"]]:
            body: dict[str, object]
            if task == "qa":
                body = {"question": "who wrote it?", "context": CONTEXT}
            else:
                body = {"inputs": texts[case["input"]] if case["lengths"]["tokens"] != 4 else "not good"}
            alone = running.client.post("/compare", json=body).json()
            assert case["agree"] == alone["agree"]
            shown = {b: share["answer"] for b, share in alone["results"].items()}
            for backend, answer in case["answers"].items():
                if task == "qa":
                    assert answer == {k: shown[backend][k] for k in ("score", "start", "end")}
                    assert case["span_f1"] == alone["delta"]["span_f1"]
                else:
                    assert answer == shown[backend][0]
                    assert case["abs_diff"] == alone["delta"]["max_abs_prob"]


def test_metrics_count_what_the_route_shows(classify_folder: Path, qa_folder: Path) -> None:
    with serve(classify_folder, qa_folder) as running:
        before = samples(running.client)
        assert before["q8bert_shadow_dropped_total", (("reason", "busy"),)] == 0
        for word in ("good", "bad", "film", "book", "very good film", "not bad"):
            running.ask("/classify", inputs=word)
            running.ask("/qa", question=f"who wrote the {word}?", context=CONTEXT)
        wait_until(running.settled)
        models, metrics = running.client.get("/agreement").json()["models"], samples(running.client)
        found = {model["task"]: model for model in models.values()}
        for task in ("classify", "qa"):
            labels = (("model", f"tiny-{task}"), ("task", task))
            agreed, disagreed = (
                metrics["q8bert_shadow_comparisons_total", (labels[0], ("result", result), labels[1])]
                for result in ("agree", "disagree")
            )
            assert (found[task]["agreed"], found[task]["compared"]) == (agreed, agreed + disagreed)
            for name in ("abs_diff", "span_f1"):
                total, count = (metrics.get((f"q8bert_shadow_{name}_{part}", labels)) for part in ("sum", "count"))
                if name == "span_f1" and task == "classify":
                    assert (total, count) == (None, None)
                    continue
                assert count == 6
                assert found[task][name]["mean"] == pytest.approx(total / 6)  # type: ignore[operator]


def test_requests_go_first(classify_folder: Path) -> None:
    with serve(classify_folder) as running, ThreadPoolExecutor(1) as pool:
        fp32 = running.engines["classify", "fp32"]
        fp32.open.clear()
        running.ask("/classify", inputs=["good", "bad", "film", "book"])  # int8: its shadow is held in fp32
        assert fp32.computing.wait(240)
        late = pool.submit(running.ask, "/classify", inputs="a very good book")
        wait_until(lambda: running.service.queue.waiting_requests() == 1)
        fp32.open.set()
        late.result()
        wait_until(running.settled)
    # one text's shadow was running; then came the request, and only then the other shadows, one text at a time
    assert fp32.log[:3] == [("int8", 12), ("fp32", 3), ("int8", 6)]
    assert sorted(fp32.log[3:]) == [("fp32", 3)] * 3 + [("fp32", 6)]


def test_nothing_runs_while_a_request_is_in_the_house(classify_folder: Path) -> None:
    with serve(classify_folder) as running, ThreadPoolExecutor(1) as pool:
        int8 = running.engines["classify", "int8"]
        for _ in range(3):
            running.ask("/classify", inputs="good", backend="fp32")  # the shadows are for int8
        wait_until(running.settled)
        idle = running.service.shadow._idle
        running.service.shadow._idle = lambda: False
        running.ask("/classify", inputs="good", backend="fp32")
        assert running.service.shadow.take() is None
        assert running.service.shadow.waiting() == 1
        running.service.shadow._idle = idle
        with running.service.pipeline.in_flight.track(_trace()):
            assert running.service.shadow.take() is None
        wait_until(running.settled)
        assert int8.log.count(("int8", 3)) == 4
        pool.shutdown()


def _trace() -> object:
    from service.telemetry.trace import RequestTrace

    return RequestTrace("other")


@pytest.mark.parametrize("error", [RuntimeError("broken"), InputError("token_type_ids holds 1; allowed: 0 to 0")])
def test_a_failing_engine_drops_the_sample_and_nothing_else(
    classify_folder: Path, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    with serve(classify_folder) as running:
        running.engines["classify", "fp32"].error = error
        running.ask("/classify", inputs="good")
        wait_until(running.settled)
        assert running.service.shadow.dropped() == {**dict.fromkeys(DROPS, 0), "failed": 1}
        assert running.client.get("/readyz").status_code == running.client.get("/livez").status_code == 200
        assert running.client.get("/agreement").json()["models"]["tiny-classify"]["compared"] == 0
        running.engines["classify", "fp32"].error = None
        running.ask("/classify", inputs="good")
        wait_until(running.settled)
        assert running.client.get("/agreement").json()["models"]["tiny-classify"]["compared"] == 1
    assert ("Traceback" in caplog.text) == isinstance(error, RuntimeError), "a refusal is no fault of the engine"


def test_a_drain_does_not_wait_for_it(classify_folder: Path) -> None:
    with serve(classify_folder) as running:
        running.service.shadow._idle = lambda: False
        for _ in range(5):
            running.ask("/classify", inputs="good")
        assert running.service.shadow.waiting() == 5
        assert running.service.pipeline.in_flight.count() == 0
        log = running.engines["classify", "fp32"].log
        before = list(log)
        running.service.drain()
        running.service.shadow._idle = lambda: True
        assert running.service.shadow.waiting() == 0
        assert running.service.stop(240)
        assert log == before, "no shadow was computed"
        assert running.service.shadow.dropped()["draining"] == 5


def test_unanswered_requests_and_comparisons_are_not_sampled(classify_folder: Path) -> None:
    with serve(classify_folder) as running:
        for path, body in (("/classify", {"inputs": []}), ("/classify", {"inputs": 3}), ("/compare", {"inputs": "a"})):
            running.client.post(path, json=body)
        assert running.service.shadow.waiting() == 0
        assert running.settled()


@pytest.mark.parametrize("wanted", [False, True])
def test_texts_stay_in_the_house_unless_wanted(
    classify_folder: Path, qa_folder: Path, wanted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with serve(classify_folder, qa_folder, shadow_texts=wanted) as running:
        running.ask("/classify", inputs=[{"text": "secretone", "text_pair": "secretpair"}, "secrettwo"])
        running.ask("/qa", question="secretquestion?", context="secretcontext was ada")
        wait_until(running.settled)
        shown = running.client.get("/agreement").text
        secrets = ("secretone", "secretpair", "secrettwo", "secretquestion", "secretcontext")
        assert {word in shown for word in secrets} == {wanted}
        assert ('"answer":' in shown) == wanted
        others = "".join(running.client.get(path).text for path in ("/metrics", "/info")) + caplog.text
        assert "secret" not in others
        running.engines["qa", "fp32"].error = RuntimeError("broken")
        running.ask("/qa", question="secretquestion?", context="secretcontext")
        wait_until(running.settled)
        assert "secret" not in caplog.text


def test_it_is_off_unless_wanted(client: TestClient, service: Service) -> None:
    assert client.post("/classify", json={"inputs": "good"}).status_code == 200
    found = client.get("/agreement").json()
    assert (found["shadow_rate"], found["waiting"]) == (0, 0)
    assert {name: model["compared"] for name, model in found["models"].items()} == {"tiny-classify": 0, "tiny-qa": 0}
    assert client.get("/info").json()["shadow"]["rate"] == 0
    assert service.shadow.pause() is None
