"""docker/requirements.txt against pyproject.toml: inside its ranges, complete, and really exact."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


@pytest.fixture(scope="module")
def pins(root: Path) -> dict[str, Version]:
    pins: dict[str, Version] = {}
    for line in (root / "docker" / "requirements.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", line
        assert "*" not in specifier.version, line
        name = canonicalize_name(requirement.name)
        assert name not in pins, f"{name} twice"
        pins[name] = Version(specifier.version)
    return pins


@pytest.fixture(scope="module")
def declared(root: Path) -> list[Requirement]:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return [Requirement(line) for line in project["dependencies"]]


def test_every_dependency_is_pinned_inside_its_range(pins: dict[str, Version], declared: list[Requirement]) -> None:
    for requirement in declared:
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} is not pinned"
        assert requirement.specifier.contains(pins[name], prereleases=True), f"{requirement}: pinned {pins[name]}"


def closure(declared: list[Requirement]) -> set[str]:
    """Names of all distributions that the project needs here, by the installed ones' own metadata."""
    needed: dict[str, set[str]] = {}
    waiting = list(declared)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = {"", *requirement.extras}
        fresh = extras - needed.get(name, set())
        if not fresh:
            continue
        needed.setdefault(name, set()).update(fresh)
        for line in importlib.metadata.requires(requirement.name) or []:
            child = Requirement(line)
            if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in fresh):
                waiting.append(child)
    return set(needed)


def test_the_pins_are_the_whole_closure(pins: dict[str, Version], declared: list[Requirement]) -> None:
    # A missing pin would be resolved anew at every build; one too many would be installed for nothing.
    assert set(pins) == closure(declared)
