"""Many clients, leaving clients, time limits and full queues, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import huggingface_hub
import pytest
from huggingface_hub import InferenceClient

from q8core.arrays import Logits
from q8core.engines import TokenBatch
from service.core import Service
from service.http.app import create_app
from service.settings import Settings
from tests.service.conftest import open_registry
from tests.service.running import running_server, wait_until

CONTEXT = "It was written by Ada in Paris. " * 12


class Gate:
    """A real engine that computes only while its gate is open."""

    def __init__(self, engine: object) -> None:
        self.engine = engine
        self.open = threading.Event()
        self.open.set()
        self.computing = threading.Event()

    def infer(self, batch: TokenBatch) -> Logits:
        self.computing.set()
        assert self.open.wait(240)
        return self.engine.infer(batch)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self.engine, name)


class Running:
    """A served application whose engines can be held."""

    def __init__(self, url: str, service: Service, gates: list[Gate]) -> None:
        self.url, self.service, self.gates = url, service, gates

    def hold(self) -> None:
        for gate in self.gates:
            gate.open.clear()
            gate.computing.clear()

    def release(self) -> None:
        for gate in self.gates:
            gate.open.set()

    def idle(self) -> bool:
        queue = self.service.queue
        return not (self.service.pipeline.in_flight.count() or queue.waiting_tokens() or queue.waiting_requests())


@pytest.fixture(scope="module")
def served(classify_folder: Path, qa_folder: Path) -> Iterator[Running]:
    registry = open_registry(classify_folder, qa_folder)
    settings = Settings(
        threads=1, max_queue_requests=6, max_queue_tokens=500, max_batch_tokens=100, request_timeout_s=60
    )
    app = create_app(settings, registry)
    gates: list[Gate] = []
    load = registry.load

    def gated_load(check_stop: object) -> dict[object, Gate]:
        engines = load(check_stop)  # type: ignore[arg-type]
        gates.extend(Gate(engine) for engine in engines.values())
        return dict(zip(engines, gates, strict=True))

    registry.load = gated_load  # type: ignore[method-assign,assignment]
    with running_server(app) as url:
        yield Running(url, app.state.service, gates)


@pytest.fixture(autouse=True)
def nothing_left_behind(served: Running) -> Iterator[None]:
    yield
    served.release()
    wait_until(served.idle)
    gauges = httpx.get(f"{served.url}/metrics").text.splitlines()
    for name in ("q8bert_requests_in_flight", "q8bert_queue_requests", "q8bert_queue_tokens"):
        assert {line.split()[-1] for line in gauges if line.startswith(name)} == {"0.0"}


def numbers(answer: object) -> list[float]:
    if isinstance(answer, dict):
        return [n for _, value in sorted(answer.items()) for n in numbers(value)]
    if isinstance(answer, list):
        return [n for value in answer for n in numbers(value)]
    return [answer] if isinstance(answer, int | float) else []


def test_sixteen_clients_get_what_one_gets(served: Running) -> None:
    jobs: list[tuple[str, dict[str, object]]] = []
    for n in range(8):
        backend = "int8" if n % 2 else "fp32"
        jobs.append(("/classify", {"inputs": "good film " * (1 + n), "backend": backend}))
        jobs.append(("/qa", {"question": "who?", "context": CONTEXT[n : n + 90], "backend": backend}))
    with httpx.Client(base_url=served.url) as one:
        alone = [one.post(path, json=body).json() for path, body in jobs]

    def client(number: int) -> list[object]:
        found: list[object] = []
        with httpx.Client(base_url=served.url, timeout=240) as own:
            for path, body in jobs[number:] + jobs[:number]:
                while (answer := own.post(path, json=body)).status_code == 429:
                    assert int(answer.headers["retry-after"]) >= 1
                assert answer.status_code == 200, answer.text
                found.append(answer.json())
        return found[len(jobs) - number :] + found[: len(jobs) - number]

    with ThreadPoolExecutor(16) as pool:
        for found in pool.map(client, range(16)):
            assert [len(numbers(f)) for f in found] == [len(numbers(a)) for a in alone]
            assert numbers(found) == pytest.approx(numbers(alone), abs=1e-6)


def test_hugging_faces_client_works_unmodified(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # it would refuse even loopback
    labels = InferenceClient(model=f"{served.url}/classify").text_classification("a very good film", top_k=2)
    assert [entry.label for entry in labels] == [
        entry["label"] for entry in httpx.post(f"{served.url}/classify", json={"inputs": "a very good film"}).json()[0]
    ][:2]
    client = InferenceClient(model=f"{served.url}/qa")
    answer = client.question_answering(question="who wrote it?", context=CONTEXT)
    assert answer.answer == CONTEXT[answer.start : answer.end] != ""
    several = client.question_answering(question="who wrote it?", context=CONTEXT, top_k=3)
    assert several[0] == answer


def test_full_queue_is_refused_at_once_and_recovers(served: Running) -> None:
    served.hold()
    with ThreadPoolExecutor(10) as pool:
        running = pool.submit(httpx.post, f"{served.url}/classify", json={"inputs": "good"}, timeout=240)
        wait_until(lambda: any(gate.computing.is_set() for gate in served.gates))
        waiting = [
            pool.submit(httpx.post, f"{served.url}/classify", json={"inputs": "good"}, timeout=240) for _ in range(6)
        ]
        wait_until(lambda: served.service.queue.waiting_requests() == 6)
        refused = httpx.post(f"{served.url}/classify", json={"inputs": "good"})
        assert (refused.status_code, refused.json()["error_type"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        served.release()
        assert [job.result().status_code for job in (running, *waiting)] == [200] * 7
    assert httpx.post(f"{served.url}/classify", json={"inputs": "good"}).status_code == 200


def test_what_the_queue_has_no_room_for_is_refused_unread(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.http.overload._FULL_S", 600)

    def ask(text: str = "good") -> httpx.Response:
        return httpx.post(f"{served.url}/classify", json={"inputs": text}, timeout=240)

    served.hold()
    with ThreadPoolExecutor(10) as pool:
        running = pool.submit(ask)
        wait_until(lambda: any(gate.computing.is_set() for gate in served.gates))
        waiting = [pool.submit(ask) for _ in range(6)]
        wait_until(lambda: served.service.queue.waiting_requests() == 6)
        refusals = [ask(), ask(), ask("goo")]
        served.release()
        assert [job.result().status_code for job in (running, *waiting)] == [200] * 7
    assert [answer.status_code for answer in refusals] == [429] * 3
    messages = [answer.json()["error"] for answer in refusals]
    assert ["requests are waiting already" in message for message in messages] == [True, False, True]
    assert ask().status_code == 200


def test_tokens_fill_the_queue_as_well(served: Running) -> None:
    served.hold()
    with ThreadPoolExecutor(4) as pool:
        running = pool.submit(httpx.post, f"{served.url}/classify", json={"inputs": "good"}, timeout=240)
        wait_until(lambda: any(gate.computing.is_set() for gate in served.gates))
        large = pool.submit(httpx.post, f"{served.url}/classify", json={"inputs": ["good " * 60] * 8}, timeout=240)
        wait_until(lambda: served.service.queue.waiting_tokens() == 496)
        refused = httpx.post(f"{served.url}/classify", json={"inputs": ["good"] * 2})
        assert (refused.status_code, refused.json()["error_type"]) == (429, "queue_full")
        served.release()
        assert running.result().status_code == large.result().status_code == 200


@pytest.mark.parametrize(("path", "inputs"), [("/classify", ["bad film"] * 3), ("/compare", "bad film")])
def test_leaving_clients_free_their_place(served: Running, path: str, inputs: object) -> None:
    served.hold()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(httpx.post, f"{served.url}/classify", json={"inputs": "good"}, timeout=240)
        wait_until(lambda: any(gate.computing.is_set() for gate in served.gates))
        body = json.dumps({"inputs": inputs}).encode()
        head = b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        sockets = []
        for _ in range(4):
            connection = socket.create_connection(("127.0.0.1", int(served.url.rsplit(":", 1)[1])))
            connection.sendall(head % (path.encode(), len(body)) + body)
            sockets.append(connection)
        wait_until(lambda: served.service.queue.waiting_requests() == 4)
        for connection in sockets:
            connection.close()
        wait_until(lambda: served.service.queue.waiting_requests() == 0)
        assert served.service.queue.waiting_tokens() == 0
        served.release()
        assert running.result().status_code == 200
    value = served.service.metrics.registry.get_sample_value
    labels = {"task": path.removeprefix("/"), "code": "499"}
    left = {b: value("q8bert_requests_total", {**labels, "backend": b}) for b in ("fp32", "int8", "none")}
    # a comparison counts where it was given up, and the backends take turns at going first
    assert left == ({"fp32": 0, "int8": 4, "none": 0} if path == "/classify" else {"fp32": 2, "int8": 2, "none": 0})
    assert served.service.pipeline.in_flight.count() == 0


def test_time_limit_answers_504_even_while_the_engine_is_busy(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    served.hold()
    monkeypatch.setattr(served.service.pipeline._steps, "_timeout_s", 0.3)
    answer = httpx.post(f"{served.url}/qa", json={"question": "who?", "context": CONTEXT}, timeout=240)
    assert (answer.status_code, answer.json()["error_type"]) == (504, "deadline_exceeded")
    assert served.service.queue.waiting_tokens() == 0, "the windows that had not begun are gone"


def test_ten_megabytes_are_refused_and_the_connection_survives(served: Running) -> None:
    with httpx.Client(base_url=served.url) as client:
        body = json.dumps({"inputs": "x" * 10_000_000}).encode()
        for content in (body, (body[i : i + 65536] for i in range(0, len(body), 65536))):
            answer = client.post("/classify", content=content, headers={"content-type": "application/json"})
            assert (answer.status_code, answer.json()["error_type"]) == (413, "body_too_large")
        assert client.post("/classify", json={"inputs": "good"}).status_code == 200


def test_half_sent_request_leaves_nothing(served: Running) -> None:
    connection = socket.create_connection(("127.0.0.1", int(served.url.rsplit(":", 1)[1])))
    connection.sendall(
        b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
    )
    connection.close()
    assert httpx.get(f"{served.url}/readyz").status_code == 200


def test_many_requests_of_one_event_loop(served: Running) -> None:
    async def ask_all() -> list[int]:
        async with httpx.AsyncClient(base_url=served.url, timeout=240) as client:
            answers = await asyncio.gather(*(client.post("/classify", json={"inputs": "bad " * n}) for n in range(40)))
        return [answer.status_code for answer in answers]

    codes = asyncio.run(ask_all())
    assert set(codes) <= {200, 429}
    assert codes.count(200) >= 6
