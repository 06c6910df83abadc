"""Grafana's provisioning: well formed, consistent, and asking only for metrics and labels that exist.

That every query is valid PromQL and returns data is checked against a real Prometheus by .ci/compose-smoke.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.packaging.series import METRIC, SCRAPE_LABELS


@pytest.fixture(scope="module")
def dashboard(root: Path) -> dict[str, Any]:
    (path,) = (root / "docker" / "grafana" / "dashboards").glob("*.json")
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def targets(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    targets = [target for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(targets) > 15
    return targets


def provisioned(root: Path, kind: str) -> dict[str, Any]:
    (path,) = (root / "docker" / "grafana" / "provisioning" / kind).glob("*.yml")
    return yaml.safe_load(path.read_text())


def datasource_references(node: Any) -> Iterator[dict[str, str]]:
    """Every ``datasource`` in the dashboard, at any depth."""
    if isinstance(node, dict):
        if "datasource" in node:
            yield node["datasource"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from datasource_references(child)


def test_one_datasource_which_all_panels_name(root: Path, dashboard: dict[str, Any]) -> None:
    (datasource,) = provisioned(root, "datasources")["datasources"]
    reference = {"type": datasource["type"], "uid": datasource["uid"]}
    references = list(datasource_references(dashboard))
    assert len(references) > 30
    assert all(found == reference for found in references)
    assert not datasource["editable"]


def test_the_datasource_is_the_compose_service(root: Path, compose: dict[str, Any]) -> None:
    (datasource,) = provisioned(root, "datasources")["datasources"]
    host, port = datasource["url"].removeprefix("http://").split(":")
    assert compose["services"][host]["ports"][0].endswith(f":{port}")
    scrape = yaml.safe_load((root / "docker" / "prometheus" / "prometheus.yml").read_text())["global"][
        "scrape_interval"
    ]
    assert datasource["jsonData"]["timeInterval"] == scrape


def test_the_provider_reads_where_compose_mounts(root: Path, compose: dict[str, Any]) -> None:
    (provider,) = provisioned(root, "dashboards")["providers"]
    grafana = compose["services"]["grafana"]
    mounts = {target: source for source, target, _ in (volume.split(":") for volume in grafana["volumes"])}
    folder = provider["options"]["path"]
    assert mounts[folder] == "./docker/grafana/dashboards"
    assert mounts["/etc/grafana/provisioning"] == "./docker/grafana/provisioning"
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home.startswith(folder + "/")
    assert (root / "docker" / "grafana" / "dashboards" / home.removeprefix(folder + "/")).is_file()


def test_viewers_only(compose: dict[str, Any]) -> None:
    environment = compose["services"]["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == "true"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"


def test_panels_are_distinct_and_do_not_overlap(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert min(place["w"], place["h"]) > 0
        assert place["x"] + place["w"] <= 24
    for a, b in itertools.combinations((panel["gridPos"] for panel in panels), 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        below = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or below, (a, b)


def test_every_panel_says_what_it_shows(dashboard: dict[str, Any]) -> None:
    for panel in dashboard["panels"]:
        assert panel["type"] == "row" or panel["description"].endswith("."), panel["title"]


def test_what_did_not_occur_has_no_legend_entry(dashboard: dict[str, Any]) -> None:
    """All series exist from the start: one for each backend with each status code is more than a legend holds."""
    crowded = [
        panel
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
        if re.search(r"\bby \([^)]*\b(code|reason)\b", target["expr"])
    ]
    assert len(crowded) == 3
    for panel in crowded:
        # the last override wins
        last = panel["fieldConfig"]["overrides"][-1]
        assert last["matcher"]["options"]["reducer"] == "allIsZero"
        hidden = {p["id"]: p["value"] for p in last["properties"]}["custom.hideFrom"]
        assert hidden["legend"]
        assert hidden["tooltip"]


def test_asks_only_for_metrics_that_exist(targets: list[dict[str, Any]], exposed: dict[str, set[str]]) -> None:
    for target in targets:
        names = set(METRIC.findall(target["expr"]))
        assert names, target["expr"]
        assert names <= set(exposed), f"unknown: {names - set(exposed)} in {target['expr']}"


def test_asks_only_for_labels_that_exist(targets: list[dict[str, Any]], exposed: dict[str, set[str]]) -> None:
    for target in targets:
        expression = target["expr"]
        for name, matchers in re.findall(r"\b((?:q8bert|process)_[a-z0-9_]+)\{([^}]*)\}", expression):
            labels = set(re.findall(r"(\w+)\s*=?[=~!]", matchers))
            assert labels, expression
            assert labels <= exposed[name] | SCRAPE_LABELS, expression
        common = set.intersection(*(exposed[name] for name in METRIC.findall(expression))) | SCRAPE_LABELS
        for group in re.findall(r"\bby \(([^)]*)\)", expression):
            assert {label.strip() for label in group.split(",")} <= common, expression


def test_legends_name_labels_that_are_left(targets: list[dict[str, Any]]) -> None:
    for target in targets:
        groups = [set(re.split(r",\s*", group)) for group in re.findall(r"\bby \(([^)]*)\)", target["expr"])]
        left = set.intersection(*groups) if groups else set()
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= left, target


def test_label_values_of_the_queries_are_ones_that_the_service_uses(targets: list[dict[str, Any]]) -> None:
    matched = {pair for target in targets for pair in re.findall(r'(\w+)=~?"([^"]*)"', target["expr"])}
    assert matched == {
        ("backend", "fp32"),
        ("backend", "int8"),
        ("result", "agree"),
        ("result", "confirmed|changed"),
        ("kind", "real"),
        ("kind", "weights|scales"),
        ("kind", "workspace"),
        ("task", "$task"),
        ("job", "q8bert"),
    }


def test_costs_come_from_a_price_that_the_viewer_sets(dashboard: dict[str, Any], targets: list[dict[str, Any]]) -> None:
    (price,) = [variable for variable in dashboard["templating"]["list"] if variable["name"] == "price"]
    assert price["type"] == "textbox"
    assert float(price["query"]) > 0
    for target in targets:
        names = set(re.findall(r"\$(?!__)(\w+)", target["expr"]))
        assert names <= {variable["name"] for variable in dashboard["templating"]["list"]}, target["expr"]
    assert sum("$price" in target["expr"] for target in targets) == 2


def test_the_dashboard_compares_what_was_promised(targets: list[dict[str, Any]]) -> None:
    shown = {name for target in targets for name in METRIC.findall(target["expr"])}
    assert shown >= {
        "q8bert_requests_total",
        "q8bert_request_duration_seconds_bucket",
        "q8bert_stage_duration_seconds_sum",
        "q8bert_rejected_total",
        "q8bert_requests_in_flight",
        "q8bert_queue_requests",
        "q8bert_queue_tokens",
        "q8bert_batch_size_bucket",
        "q8bert_batch_tokens_bucket",
        "q8bert_tokens_total",
        "q8bert_engine_busy_seconds_total",
        "q8bert_cpu_seconds_total",
        "q8bert_model_memory_bytes",
        "q8bert_engine_up",
        "q8bert_selftest_max_abs_diff",
        "q8bert_model_info",
        "q8bert_queue_limit_tokens",
        "q8bert_shadow_comparisons_total",
        "q8bert_shadow_abs_diff_bucket",
        "q8bert_shadow_dropped_total",
        "q8bert_escalations_total",
    }
    quantiles = {
        q for target in targets for q in re.findall(r"histogram_quantile\((\S+),.*request_duration", target["expr"])
    }
    assert quantiles == {"0.5", "0.95", "0.99"}
