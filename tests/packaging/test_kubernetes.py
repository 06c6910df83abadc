"""The example Kubernetes manifest: confined, probed, drained, scaled, and consistent with image and service."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.settings import Settings
from tests.packaging.series import SCRAPE_LABELS

NAME = {"app.kubernetes.io/name": "q8bert"}


@pytest.fixture(scope="module")
def objects(root: Path) -> dict[str, Any]:
    found = list(yaml.safe_load_all((root / "docker" / "kubernetes" / "q8bert.yaml").read_text()))
    kinds = {document["kind"]: document for document in found}
    assert len(kinds) == len(found)
    return kinds


@pytest.fixture(scope="module")
def pod(objects: dict[str, Any]) -> dict[str, Any]:
    return objects["Deployment"]["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["containers"]
    return container


def test_the_objects(objects: dict[str, Any]) -> None:
    assert {kind: document["apiVersion"] for kind, document in objects.items()} == {
        "ServiceAccount": "v1",
        "Deployment": "apps/v1",
        "Service": "v1",
        "PodDisruptionBudget": "policy/v1",
        "HorizontalPodAutoscaler": "autoscaling/v2",
    }
    assert {document["metadata"]["name"] for document in objects.values()} == {"q8bert"}


def test_kubernetes_knows_every_field(objects: dict[str, Any]) -> None:
    version = kubernetes_validate.latest_version()
    for document in objects.values():
        kubernetes_validate.validate(document, version, strict=True)
        with pytest.raises(kubernetes_validate.ValidationError):  # or the line above could not fail
            kubernetes_validate.validate({**document, "speck": {}}, version, strict=True)


def test_selectors_find_the_pods(objects: dict[str, Any]) -> None:
    deployment = objects["Deployment"]["spec"]
    assert deployment["template"]["metadata"]["labels"] == NAME
    assert deployment["selector"]["matchLabels"] == objects["Service"]["spec"]["selector"] == NAME
    assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == NAME
    reference = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (reference["kind"], reference["name"], reference["apiVersion"]) == ("Deployment", "q8bert", "apps/v1")
    assert "replicas" not in deployment, "an apply would undo what the autoscaler decided"


def test_confined(root: Path, pod: dict[str, Any], container: dict[str, Any]) -> None:
    (user,) = re.findall(r"^USER (\d+):\d+$", (root / "Dockerfile").read_text(), re.MULTILINE)
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert {security[key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {int(user)}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert set(container["resources"]["limits"]) == set(container["resources"]["requests"]) == {"cpu", "memory"}


def test_only_tmp_and_the_cache_can_be_written(root: Path, pod: dict[str, Any], container: dict[str, Any]) -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert all(volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"])
    (cache,) = re.findall(r"Q8BERT_CACHE=(\S+)", (root / "Dockerfile").read_text())
    assert set(mounts.values()) == {"/tmp", cache}


def test_no_service_variable_is_taken_for_a_setting(pod: dict[str, Any]) -> None:
    # A Service named q8bert would set Q8BERT_PORT=tcp://..., which is no port.
    assert pod["enableServiceLinks"] is False


def test_probes_ask_paths_that_exist_for_what_they_mean(container: dict[str, Any], root: Path) -> None:
    (port,) = container["ports"]
    assert port["containerPort"] == int(
        re.findall(r"^EXPOSE (\d+)$", (root / "Dockerfile").read_text(), re.MULTILINE)[0]
    )
    paths = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {get["port"] for get in paths.values()} == {port["name"]}
    assert {name: get["path"] for name, get in paths.items()} == {
        "startup": "/readyz",
        "liveness": "/livez",
        "readiness": "/readyz",
    }
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 180, (
        "as long as the image's own health check waits"
    )


def test_time_to_answer_everything_before_the_end(pod: dict[str, Any], container: dict[str, Any]) -> None:
    arguments = container["args"]
    timeout = float(arguments[arguments.index("--request-timeout-s") + 1])
    (pause,) = re.findall(r"sleep\((\d+)\)", container["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert pod["terminationGracePeriodSeconds"] >= timeout + int(pause) + 10


def test_arguments_are_options_of_serve(container: dict[str, Any]) -> None:
    command, *arguments = container["args"]
    assert command == "serve"
    options = [argument for argument in arguments if argument.startswith("--")]
    assert {option.removeprefix("--").replace("-", "_") for option in options} <= set(Settings.model_fields)


def test_scales_by_what_waits(objects: dict[str, Any], exposed: dict[str, set[str]]) -> None:
    autoscaler = objects["HorizontalPodAutoscaler"]["spec"]
    assert 2 <= autoscaler["minReplicas"] < autoscaler["maxReplicas"]
    (metric,) = autoscaler["metrics"]
    assert exposed[metric["pods"]["metric"]["name"]] - SCRAPE_LABELS == {"backend"}
    assert int(metric["pods"]["target"]["averageValue"]) <= Settings().max_queue_tokens // 4
