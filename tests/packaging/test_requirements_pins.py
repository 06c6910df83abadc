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
    # so that --otlp-endpoint works in the image, which has no pip
    return [Requirement(line) for line in (*project["dependencies"], *project["optional-dependencies"]["otel"])]


def test_every_dependency_is_pinned_inside_its_range(pins: dict[str, Version], declared: list[Requirement]) -> None:
    for requirement in declared:
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} is not pinned"
        assert requirement.specifier.contains(pins[name], prereleases=True), f"{requirement}: pinned {pins[name]}"


def installed_as_pinned(name: str, pin: Version) -> bool:
    """Whether this environment can tell what the pinned version needs."""
    try:
        installed = Version(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False
    # The image has torch's CPU build; PyPI's build of the same version needs CUDA's packages besides.
    return installed.local == "cpu" if name == "torch" else installed == pin


def needed(roots: list[Requirement], pins: dict[str, Version]) -> set[str]:
    """Everything that the project needs here, by the metadata of what is installed in the pinned version."""
    extras_of: dict[str, set[str]] = {}
    waiting = list(roots)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = {"", *requirement.extras} - extras_of.get(name, set())
        if not extras:
            continue
        extras_of.setdefault(name, set()).update(extras)
        if name not in pins or not installed_as_pinned(name, pins[name]):
            continue
        for child in map(Requirement, importlib.metadata.requires(name) or []):
            if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(child)
    return set(extras_of)


def test_the_pins_are_complete(pins: dict[str, Version], declared: list[Requirement]) -> None:
    # What is not pinned would be resolved anew at every build.
    assert needed(declared, pins) <= set(pins)


def test_nothing_is_pinned_that_nobody_needs(pins: dict[str, Version], declared: list[Requirement]) -> None:
    others = sorted(name for name, pin in pins.items() if not installed_as_pinned(name, pin))
    if others:
        pytest.skip(f"this environment has other versions than the image: {', '.join(others)}")
    assert set(pins) <= needed(declared, pins)
