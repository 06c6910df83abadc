from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.packaging.series import exposed_series

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def compose(root: Path) -> dict[str, Any]:
    """The compose file as written, variables not filled in."""
    return yaml.safe_load((root / "docker-compose.yml").read_text())


@pytest.fixture(scope="session")
def exposed() -> dict[str, set[str]]:
    """Every series of the service with its labels."""
    return exposed_series()
