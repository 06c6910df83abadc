"""Loading engines: what the log says of them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.service.conftest import open_registry


def test_a_slow_cpu_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, classify_folder: Path, qa_folder: Path
) -> None:
    monkeypatch.setattr("q8core.engines.choice.autoselect.speed_note", lambda *_: "no VNNI on this CPU")
    with caplog.at_level(logging.INFO, "service"):
        open_registry(classify_folder, qa_folder).load()
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == ["no VNNI on this CPU"]
    loaded = [record.message for record in caplog.records if record.levelno == logging.INFO]
    assert len(loaded) == 4
    assert all("private weights" in message for message in loaded)
