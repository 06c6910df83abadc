"""docker-compose.yml: what it publishes, what it confines, and that it knows every setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from q8core.cache import CACHE_VARIABLE
from service.settings import ENV_PREFIX, SECRET_VARIABLES, Settings

SERVICES = ("q8bert", "prometheus", "grafana")


def test_the_services(compose: dict[str, Any]) -> None:
    assert tuple(compose["services"]) == SERVICES


@pytest.mark.parametrize("name", SERVICES)
def test_published_on_this_machine_alone(compose: dict[str, Any], name: str) -> None:
    (port,) = compose["services"][name]["ports"]
    assert port.startswith(("127.0.0.1:", "${Q8BERT_HOST:-127.0.0.1}:"))


@pytest.mark.parametrize("name", SERVICES)
def test_confined(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"mem_limit", "pids_limit"} <= set(service)
    assert not {"privileged", "deploy", "network_mode", "pid"} & set(service)
    assert service["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_images_are_pinned(compose: dict[str, Any], name: str) -> None:
    tag = compose["services"][name]["image"].rpartition(":")[2]
    assert tag.lstrip("v").count(".") == 2


def test_the_service_writes_nothing_but_tmp_and_its_cache(root: Path, compose: dict[str, Any]) -> None:
    service = compose["services"]["q8bert"]
    assert service["read_only"] is True
    assert [mount.partition(":")[0] for mount in service["tmpfs"]] == ["/tmp"]
    (cache,) = (volume for volume in service["volumes"] if not volume.endswith(":ro"))
    name, _, folder = cache.partition(":")
    assert name in compose["volumes"]
    dockerfile = (root / "Dockerfile").read_text()
    assert f"{CACHE_VARIABLE}={folder} " in dockerfile
    # A new volume takes the owner of what the image has there.
    assert f"install --directory --owner 10001 --group 10001 {folder}\n" in dockerfile


def test_every_setting_reaches_the_service(compose: dict[str, Any]) -> None:
    environment = compose["services"]["q8bert"]["environment"]
    assert set(environment) == {*SECRET_VARIABLES, *(ENV_PREFIX + name.upper() for name in Settings.model_fields)}
    fixed = {name: value for name, value in environment.items() if value is not None}
    assert fixed == {"Q8BERT_HOST": "0.0.0.0", "Q8BERT_PORT": "8000"}


def test_mounted_files_exist(root: Path, compose: dict[str, Any]) -> None:
    sources = [
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
        if volume.startswith("./")
    ]
    assert sources
    assert all((root / source).exists() for source in sources), sources


def test_prometheus_scrapes_the_service_every_five_seconds(root: Path, compose: dict[str, Any]) -> None:
    config = yaml.safe_load((root / "docker" / "prometheus" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    target = f"q8bert:{compose['services']['q8bert']['environment']['Q8BERT_PORT']}"
    assert job["static_configs"] == [{"targets": [target]}]
    assert config["global"]["scrape_interval"] == "5s"
