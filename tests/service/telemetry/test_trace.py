"""What a request's trace says of it in headers."""

from __future__ import annotations

from service.telemetry.trace import EXPOSED_HEADERS, RequestTrace


def test_pages_of_other_origins_may_read_every_header_of_a_trace() -> None:
    stages = {"tokenize": 0.1, "queue": 0.1, "infer": 0.1, "postprocess": 0.1}
    trace = RequestTrace("r1", task="classify", backend="auto", model="m", stages=stages, answered_by="fp32")
    trace.tokens, trace.windows, trace.truncated, trace.escalated = 7, 2, 0, 1
    assert {name.decode() for name, _ in trace.headers()} == set(EXPOSED_HEADERS) - {"retry-after"}
