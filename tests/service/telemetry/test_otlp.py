"""OpenTelemetry: FastAPI's span of a request, our spans of its stages, and their way to a collector."""

from __future__ import annotations

import builtins
import itertools
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from q8core.errors import InputError
from service.http.app import create_app
from service.lifecycle import State
from service.settings import Settings
from service.telemetry.otlp import create_tracing, traces_address
from tests.service.conftest import open_registry

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
NOT_SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-00"}


class Collector(ThreadingHTTPServer):
    """An OTLP endpoint that keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.requests: list[ExportTraceServiceRequest] = []
        self.paths: list[str] = []

    @property
    def spans(self) -> list[Span]:
        return [s for r in self.requests for one in r.resource_spans for scope in one.scope_spans for s in scope.spans]


class Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        self.server.paths.append(self.path)
        self.server.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def attributes(span: Span) -> Mapping[str, object]:
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


def test_a_request_is_a_span_and_each_stage_one_below_it(
    collector: Collector, classify_folder: Path, qa_folder: Path
) -> None:
    endpoint = f"http://127.0.0.1:{collector.server_address[1]}"
    settings = Settings(threads=1, otlp_endpoint=endpoint)
    app = create_app(settings, open_registry(classify_folder, qa_folder))
    with TestClient(app, raise_server_exceptions=False) as client:
        assert app.state.service.lifecycle.wait_until_settled(240) is State.READY
        body = {"inputs": "unmistakable film", "backend": "int8"}
        answer = client.post("/classify", json=body, headers={**TRACEPARENT, "x-request-id": "abc-1"})
        assert answer.status_code == 200
        assert client.post("/compare", json={"inputs": "unmistakable film"}).status_code == 200
        assert client.post("/classify", json={"inputs": []}).status_code == 400
        assert client.post("/classify", json=body, headers=NOT_SAMPLED).status_code == 200
        assert client.get("/readyz").status_code == 200
    assert set(collector.paths) == {"/v1/traces"}
    resource = {a.key: a.value.string_value for a in collector.requests[0].resource_spans[0].resource.attributes}
    assert resource["service.name"] == "q8bert"

    (request,) = [span for span in collector.spans if span.parent_span_id.hex() == PARENT]
    assert (request.trace_id.hex(), request.name, request.kind) == (TRACE, "POST /classify", Span.SPAN_KIND_SERVER)
    assert attributes(request)["http.route"] == "/classify"
    stages = [span for span in collector.spans if span.parent_span_id == request.span_id]
    assert [span.name for span in stages] == ["tokenize", "queue", "infer", "postprocess"]
    for before, after in itertools.pairwise(stages):
        assert before.start_time_unix_nano <= before.end_time_unix_nano
        # one clock's times, rounded to nanoseconds
        assert before.end_time_unix_nano <= after.start_time_unix_nano + 1000
    for span in stages:
        assert span.start_time_unix_nano >= request.start_time_unix_nano - 1_000_000
        assert attributes(span) == {
            "q8bert.request_id": "abc-1",
            "q8bert.task": "classify",
            "q8bert.backend": "int8",
            "q8bert.model": "tiny-classify",
            "q8bert.tokens": int(answer.headers["x-compute-tokens"]),
        }

    (comparison,) = [span for span in collector.spans if span.name == "POST /compare"]
    shares = [
        (s.name, attributes(s)["q8bert.backend"]) for s in collector.spans if s.parent_span_id == comparison.span_id
    ]
    assert [name for name, _ in shares].count("tokenize") == 1
    assert {share for share in shares if share[0] == "infer"} == {("infer", "fp32"), ("infer", "int8")}

    assert sorted(span.name for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER) == [
        "POST /classify",
        "POST /classify",
        "POST /compare",
    ], "neither the probe nor the request that its caller does not sample"
    assert "unmistakable" not in str(collector.requests)


def test_without_the_extra_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_sdk(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter")):
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without_sdk)
    with pytest.raises(InputError, match=r"--otlp-endpoint is http://127.0.0.1:4318.*pip install 'q8bert\[otel\]'"):
        create_tracing("http://127.0.0.1:4318")


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("http://a:4318", "http://a:4318/v1/traces"),
        ("http://a:4318/", "http://a:4318/v1/traces"),
        ("https://a/otlp", "https://a/otlp/v1/traces"),
        ("http://a/v1/traces", "http://a/v1/traces"),
    ],
)
def test_address_of_an_endpoint(endpoint: str, address: str) -> None:
    assert traces_address(endpoint) == address


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://a", "http://", "http:// a"])
def test_what_is_no_address_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match="otlp_endpoint"):
        Settings(otlp_endpoint=endpoint)


def test_no_exceptions_reach_a_provider_that_others_set_up(classify_folder: Path) -> None:
    app = create_app(Settings(threads=1), open_registry(classify_folder))
    assert app._telemetry["logs"] is False  # type: ignore[attr-defined]
