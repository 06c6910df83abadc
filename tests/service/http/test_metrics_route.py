from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from service.queueing.batcher import Lane
from service.telemetry.metrics import CODES, create_metrics


def samples(client: TestClient) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = client.get("/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(client: TestClient, name: str, **labels: str) -> float:
    return samples(client)[name, tuple(sorted(labels.items()))]


def test_requests_are_counted_with_their_stages(client: TestClient) -> None:
    labels = {"task": "classify", "backend": "fp32"}
    names = {
        ("q8bert_requests_total", (("code", "200"),)): 1,
        ("q8bert_request_duration_seconds_count", ()): 1,
        ("q8bert_stage_duration_seconds_count", (("stage", "infer"),)): 1,
        ("q8bert_stage_duration_seconds_count", (("stage", "tokenize"),)): 1,
        ("q8bert_batches_total", ()): 1,
        ("q8bert_inferences_total", ()): 3,
    }
    before = samples(client)
    assert client.post("/classify", json={"inputs": ["good", "bad", "film"], "backend": "fp32"}).status_code == 200
    after = samples(client)
    for (name, extra), growth in names.items():
        key = (name, tuple(sorted([*labels.items(), *extra])))
        assert after[key] - before[key] == growth, name
    tokens = ("q8bert_tokens_total", (("backend", "fp32"), ("kind", "real")))
    assert after[tokens] - before[tokens] == 9


@pytest.mark.parametrize(
    ("path", "body", "backend", "code"),
    [
        ("/classify", {"inputs": []}, "int8", "400"),
        ("/classify", {"inputs": 5}, "none", "422"),
        ("/qa", {"question": "a", "context": "", "backend": "fp32"}, "fp32", "422"),
        ("/question-answering", {"inputs": 1}, "none", "422"),
        ("/qa", {"question": "a", "context": "b", "backend": "x"}, "none", "404"),
    ],
)
def test_refusals_are_counted(client: TestClient, path: str, body: object, backend: str, code: str) -> None:
    task = "classify" if path == "/classify" else "qa"
    before = value(client, "q8bert_requests_total", task=task, backend=backend, code=code)
    assert client.post(path, json=body).status_code == int(code)
    assert value(client, "q8bert_requests_total", task=task, backend=backend, code=code) == before + 1


def test_gauges_rest_at_zero(client: TestClient) -> None:
    for backend in ("fp32", "int8"):
        for name in ("requests_in_flight", "queue_requests", "queue_tokens"):
            assert value(client, f"q8bert_{name}", backend=backend) == 0


def test_engines_and_their_memory_are_described(client: TestClient) -> None:
    found = samples(client)
    for task in ("classify", "qa"):
        for backend in ("fp32", "int8"):
            lane = {"task": task, "backend": backend, "model": f"tiny-{task}"}
            assert value(client, "q8bert_engine_up", **lane) == 1
            assert value(client, "q8bert_selftest_max_abs_diff", **lane) < 1e-3
            for kind in ("weights", "scales", "workspace"):
                assert value(client, "q8bert_model_memory_bytes", **lane, kind=kind) > 0
    assert [key for key in found if key[0] == "q8bert_model_info"]
    assert found["process_resident_memory_bytes", ()] > 0


def test_openmetrics_for_those_who_ask(client: TestClient) -> None:
    answer = client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert "q8bert_requests" in {family.name for family in parse_openmetrics(answer.text)}


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_no_series_tells_when_another_was_created(client: TestClient, accept: str) -> None:
    text = client.get("/metrics", headers={"accept": accept}).text
    assert "q8bert_requests_total{" in text
    assert "_created" not in text


def test_every_series_exists_from_the_start() -> None:
    lanes = [Lane(task, backend) for task in ("classify", "qa") for backend in ("fp32", "int8")]
    families = {family.name: family.samples for family in create_metrics(lanes).registry.collect()}
    totals = [s for s in families["q8bert_requests"] if s.name == "q8bert_requests_total"]
    assert len(totals) == 3 * 3 * len(CODES)  # classify, qa, compare; none, fp32, int8
    assert all(sample.value == 0 for sample in totals)
    # what only exists with a model
    late = {"q8bert_model_memory_bytes", "q8bert_selftest_max_abs_diff", "q8bert_model_info"}
    late |= {"q8bert_engine_up", "q8bert_engine_last_batch_timestamp_seconds", "q8bert_requests_in_flight"}
    late |= {"q8bert_queue_requests", "q8bert_queue_tokens"}
    late |= {"q8bert_escalations", "q8bert_shadow_comparisons", "q8bert_shadow_abs_diff", "q8bert_shadow_span_f1"}
    assert {name for name, found in families.items() if not found} == late


def test_two_services_do_not_share_metrics() -> None:
    one, other = create_metrics([Lane("qa", "int8")]), create_metrics([Lane("qa", "int8")])
    one.engines.batches.labels("qa", "int8").inc()
    assert other.registry.get_sample_value("q8bert_batches_total", {"task": "qa", "backend": "int8"}) == 0
