"""Prometheus' alert rules: that they ask for what exists, and with promtool that they fire on what they are for."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.telemetry.metrics import CODES, REJECTIONS
from tests.packaging.series import METRIC, SCRAPE_LABELS

RULES = Path("docker/prometheus/rules.yml")
UNIT_TESTS = Path("tests/packaging/prometheus-rules.test.yml")


@pytest.fixture(scope="module")
def rules(root: Path) -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((root / RULES).read_text())["groups"]
    return group["rules"]


def test_what_is_watched(rules: list[dict[str, Any]]) -> None:
    names = [rule["alert"] for rule in rules]
    assert len(set(names)) == len(names)
    assert set(names) == {
        "Q8bertDown",
        "Q8bertEngineDown",
        "Q8bertNotReady",
        "Q8bertErrors",
        "Q8bertSlow",
        "Q8bertRejecting",
        "Q8bertQueueNearLimit",
        "Q8bertDisagreement",
        "Q8bertMemoryGrowing",
        "Q8bertWorkersDying",
    }


def test_every_alert_waits_and_says_what_where_and_how_bad(rules: list[dict[str, Any]]) -> None:
    for rule in rules:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert "$labels.instance" in rule["annotations"]["description"]


def test_asks_only_for_metrics_and_labels_that_exist(rules: list[dict[str, Any]], exposed: dict[str, set[str]]) -> None:
    for rule in rules:
        names = set(METRIC.findall(rule["expr"]))
        assert names <= set(exposed) or rule["alert"] == "Q8bertDown", rule
        common = set.intersection(*(exposed[name] for name in names)) if names else set()
        for group in re.findall(r"\bby \(([^)]*)\)", rule["expr"]):
            asked = {label.strip() for label in group.split(",")}
            assert asked <= common | SCRAPE_LABELS | {"le"}, rule
        for name, matchers in re.findall(r"\b((?:q8bert|process)_[a-z0-9_]+)\{([^}]*)\}", rule["expr"]):
            assert set(re.findall(r"(\w+)\s*=?[=~!]", matchers)) <= exposed[name] | SCRAPE_LABELS, rule


def test_label_values_are_ones_that_the_service_uses(rules: list[dict[str, Any]]) -> None:
    matched = {pair for rule in rules for pair in re.findall(r'(\w+)=~?"([^"]*)"', rule["expr"])}
    assert matched == {("job", "q8bert"), ("code", "5.."), ("reason", "queue_full"), ("result", "disagree")}
    assert "queue_full" in REJECTIONS.values()
    assert any(re.fullmatch("5..", str(code)) for code in CODES)


def test_every_alert_has_a_unit_test_that_fires_it_and_one_that_does_not(
    root: Path, rules: list[dict[str, Any]]
) -> None:
    cases = [
        case for test in yaml.safe_load((root / UNIT_TESTS).read_text())["tests"] for case in test["alert_rule_test"]
    ]
    for rule in rules:
        alerts = [bool(case["exp_alerts"]) for case in cases if case["alertname"] == rule["alert"]]
        assert set(alerts) == {True, False}, rule["alert"]


def test_prometheus_reads_them_where_compose_mounts_them(root: Path, compose: dict[str, Any]) -> None:
    (path,) = yaml.safe_load((root / "docker" / "prometheus" / "prometheus.yml").read_text())["rule_files"]
    assert f"./{RULES}:{path}:ro" in compose["services"]["prometheus"]["volumes"]


@pytest.mark.parametrize("command", [("check", "rules", str(RULES)), ("test", "rules", str(UNIT_TESTS))])
def test_promtool_accepts_them(root: Path, command: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; .ci/compose-smoke runs it in Prometheus' image")
    found = subprocess.run([promtool, *command], cwd=root, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
