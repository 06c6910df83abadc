"""What may be tracked, and what a tracked file may say."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

TOP_LEVEL = {
    "service",
    "q8core",
    "tests",
    "docker",
    "Dockerfile",
    "docker-compose.yml",
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
}
# Paths of the machines that the project is developed on: right for nobody else.
MACHINE_PATH = re.compile(rb"(?<![\w.\-/])/(?:work|root|opt|farm|tmp/bash_jobs)(?:/|\b(?!\s*=))")


@pytest.fixture(scope="module")
def tracked(root: Path) -> list[Path]:
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True)
    files = [Path(name) for name in listing.stdout.split("\0") if name]
    assert len(files) > 20
    return files


def test_only_the_agreed_top_level_entries(tracked: list[Path]) -> None:
    entries = {path.parts[0] for path in tracked}
    assert {entry for entry in entries if not entry.startswith(".")} <= TOP_LEVEL


def test_no_machine_paths(root: Path, tracked: list[Path]) -> None:
    found: list[str] = []
    for path in tracked:
        content = (root / path).read_bytes() if (root / path).is_file() else b""
        if b"\0" in content[:8192]:
            continue
        for number, line in enumerate(content.splitlines(), 1):
            if MACHINE_PATH.search(line):
                found.append(f"{path}:{number}: {line[:120].decode(errors='replace')}")
    assert not found, "\n".join(found)


def test_the_pattern_finds_what_it_is_for() -> None:
    # put together here, so that this file does not hold what it forbids
    for word in ("work", "root", "opt"):
        assert MACHINE_PATH.search(f"cd /{word}/main".encode())
        assert MACHINE_PATH.search(f"'/{word}/x'".encode())
        assert not MACHINE_PATH.search(f"https://host/{word}/x and ./{word}/x and a/{word}/b".encode())


def test_safetensors_are_not_rewritten_by_git(root: Path, tracked: list[Path]) -> None:
    answer = subprocess.run(
        ["git", "check-attr", "text", "--", "service/checkpoints/sst2/model.int8.safetensors"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    assert answer.stdout.strip().endswith("text: unset")


def test_nothing_that_is_packaged_is_ignored(root: Path, tracked: list[Path]) -> None:
    # The wheel's builder leaves out what .gitignore names, silently: checkpoints would go missing.
    paths = [str(path) for path in tracked if path.parts[0] in {"q8core", "service"}]
    paths += ["service/checkpoints/sst2/model.int8.safetensors", "service/checkpoints/sst2/q8bert.json"]
    answer = subprocess.run(
        ["git", "check-ignore", "--no-index", "--", *paths], cwd=root, capture_output=True, text=True, check=False
    )
    assert answer.stdout == ""
    assert answer.returncode == 1
