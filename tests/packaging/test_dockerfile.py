"""The Dockerfile's promises, as far as they can be read; that it builds and runs is for .ci/compose-smoke."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

Instruction = tuple[str, str]


def instructions(text: str) -> list[Instruction]:
    """The instructions in order, continued lines joined, comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word.upper(), rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


@pytest.fixture(scope="module")
def stages(root: Path) -> list[list[Instruction]]:
    stages: list[list[Instruction]] = []
    for word, rest in instructions((root / "Dockerfile").read_text()):
        if word == "FROM":
            stages.append([])
        stages[-1].append((word, rest))
    return stages


def last(stage: list[Instruction], word: str) -> str:
    return [rest for name, rest in stage if name == word][-1]


def test_stages_on_one_base(stages: list[list[Instruction]]) -> None:
    bases = [last(stage, "FROM") for stage in stages]
    assert bases == [f"python:3.11-slim-bookworm{name}" for name in (" AS wheel", " AS builder", "")]
    assert all("apt" not in rest and "pip" not in rest for word, rest in stages[-1] if word == "RUN")


def test_only_the_stage_of_the_wheel_has_a_compiler(stages: list[list[Instruction]]) -> None:
    compiled, *others = [" ".join(rest for word, rest in stage if word == "RUN") for stage in stages]
    assert "g++" in compiled
    assert all("apt-get" not in commands and "g++" not in commands for commands in others)
    assert re.search(r"pip install --no-deps /wheels/q8bert-\S*-manylinux_\S*\.whl", others[0])


def test_builds_without_any_other_registry_image(root: Path, stages: list[list[Instruction]]) -> None:
    assert not (root / "Dockerfile").read_text().lower().startswith("# syntax")
    sources = {m for stage in stages for _, rest in stage for m in re.findall(r"--from=(\S+)", rest)}
    assert sources == {"wheel", "builder"}


def test_runs_as_a_fixed_user(stages: list[list[Instruction]]) -> None:
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", last(stages[-1], "USER"))


def test_the_server_is_process_one(stages: list[list[Instruction]]) -> None:
    assert json.loads(last(stages[-1], "ENTRYPOINT")) == ["q8bert"]
    assert json.loads(last(stages[-1], "CMD")) == ["serve"]


def test_one_health_check_in_image_and_compose(stages: list[list[Instruction]], compose: dict[str, Any]) -> None:
    rest = last(stages[-1], "HEALTHCHECK")
    command = json.loads(rest[rest.index("CMD ") + 4 :])
    assert ["CMD", *command] == compose["services"]["q8bert"]["healthcheck"]["test"]
    copied = [rest.split()[-1] for word, rest in stages[-1] if word == "COPY"]
    assert command[-1] in copied


def test_torch_comes_from_the_cpu_index_unless_told_otherwise(stages: list[list[Instruction]]) -> None:
    assert last(stages[1], "ARG").partition("=")[::2] == ("TORCH_INDEX_URL", "https://download.pytorch.org/whl/cpu")


def test_the_build_context_has_what_is_copied(root: Path, stages: list[list[Instruction]]) -> None:
    allowed = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for word, rest in (instruction for stage in stages for instruction in stage)
        if word == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    }
    assert copied == allowed
    assert all((root / source).exists() for source in copied)
