"""The repository's texts: their links lead somewhere, and their tables list what there is."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from service.settings import SECRET_VARIABLES, Settings

LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
SERVICE_TEXT = "service/README.md"


@pytest.fixture(scope="module")
def texts(root: Path) -> list[Path]:
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    files = [root / name for name in listing.stdout.split("\0") if name]
    assert len(files) > 5
    return files


def prose(path: Path) -> str:
    return CODE_BLOCK.sub("", path.read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    """The anchors of a text's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def first_column(path: Path, heading: str) -> str:
    """The first cells of the table below a heading."""
    below = prose(path).split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return "\n".join(line.split("|")[1] for line in below.splitlines() if line.startswith("|"))


def test_every_relative_link_leads_to_a_file_and_a_heading(texts: list[Path]) -> None:
    broken: list[str] = []
    for text in texts:
        for link in LINK.findall(prose(text)):
            if re.match(r"\w+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (text.parent / path).resolve() if path else text
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{text.parent.name}/{text.name}: {link}")
    assert not broken


def test_the_table_of_settings_lists_every_setting_and_no_other(root: Path) -> None:
    cells = first_column(root / SERVICE_TEXT, "Settings")
    options = {name.replace("-", "_") for name in re.findall(r"`--([\w-]+)`", cells)} - {"no_docs"}
    assert options == set(Settings.model_fields)
    assert set(re.findall(r"`(Q8BERT_\w+)`", cells)) == set(SECRET_VARIABLES)


def test_the_table_of_metrics_lists_every_metric_and_no_other(root: Path, exposed: dict[str, set[str]]) -> None:
    listed = re.findall(r"`(\w+)`", first_column(root / SERVICE_TEXT, "Metrics"))
    own = {name.removeprefix("q8bert_") for name in exposed if name.startswith("q8bert_")}
    assert set(listed) == {re.sub(r"_(bucket|sum|count)$", "", name) for name in own}
