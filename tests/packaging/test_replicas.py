"""docker/compose.replicas.yml: confined as the rest, every replica scraped, and a proxy that fits the service."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings


class Loader(yaml.SafeLoader):
    """Knows Compose's tags, which say how an entry is merged, and drops them."""


for _tag in ("!reset", "!override"):
    Loader.add_constructor(_tag, lambda loader, node: loader.construct_sequence(node))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def override(root: Path) -> dict[str, Any]:
    return yaml.load((root / "docker" / "compose.replicas.yml").read_text(), Loader)["services"]


@pytest.fixture(scope="module")
def nginx(root: Path) -> str:
    return (root / "docker" / "nginx" / "q8bert.conf").read_text()


def test_only_the_proxy_is_published_and_where_the_service_was(
    compose: dict[str, Any], override: dict[str, Any], nginx: str
) -> None:
    assert override["q8bert"] == {"scale": "${REPLICAS:-2}", "ports": []}
    (before,) = compose["services"]["q8bert"]["ports"]
    (now,) = override["proxy"]["ports"]
    assert now.rpartition(":")[0] == before.rpartition(":")[0]
    assert f"listen {now.rpartition(':')[2]};" in nginx


def test_the_proxy_is_confined(override: dict[str, Any], nginx: str) -> None:
    proxy = override["proxy"]
    assert proxy["cap_drop"] == ["ALL"]
    assert proxy["security_opt"] == ["no-new-privileges:true"]
    assert proxy["read_only"] is True
    assert proxy["user"].partition(":")[0] not in {"", "0", "root"}
    assert {"mem_limit", "pids_limit"} <= set(proxy)
    assert proxy["image"].rpartition(":")[2].partition("-")[0].count(".") == 2
    written = re.findall(r"(?:_temp_path|^pid) (\S+);", nginx, re.MULTILINE)
    assert len(written) == 6
    assert all(path.startswith("/tmp/") for path in written)


def test_every_replica_is_scraped_by_the_same_rules(
    root: Path, compose: dict[str, Any], override: dict[str, Any]
) -> None:
    folder = root / "docker" / "prometheus"
    one, many = (yaml.safe_load((folder / name).read_text()) for name in ("prometheus.yml", "prometheus.replicas.yml"))
    assert {key: value for key, value in many.items() if key != "scrape_configs"} == {
        key: value for key, value in one.items() if key != "scrape_configs"
    }
    (job,) = many["scrape_configs"]
    assert job["job_name"] == one["scrape_configs"][0]["job_name"]
    (names,) = job["dns_sd_configs"]
    assert f"{names['names'][0]}:{names['port']}" == one["scrape_configs"][0]["static_configs"][0]["targets"][0]
    targets = [volume.split(":")[1] for volume in compose["services"]["prometheus"]["volumes"]]
    assert [volume.split(":")[1] for volume in override["prometheus"]["volumes"]] == targets


def test_mounted_files_exist(root: Path, override: dict[str, Any]) -> None:
    sources = [v.split(":")[0] for one in override.values() for v in one.get("volumes", []) if v.startswith("./")]
    assert len(sources) == 3
    assert all((root / source).is_file() for source in sources)


def test_the_proxy_leaves_limits_to_the_service(nginx: str) -> None:
    defaults = Settings()
    (size,) = re.findall(r"client_max_body_size (\d+)m;", nginx)
    assert int(size) * 1_000_000 > defaults.payload_limit
    (seconds,) = re.findall(r"proxy_read_timeout (\d+)s;", nginx)
    assert int(seconds) > defaults.request_timeout_s
