from __future__ import annotations

from pathlib import Path

import pytest
import torch

from q8core import cpus


@pytest.mark.parametrize(
    ("quota", "torchs", "expected"),
    [
        ("max 100000", 8, 8),
        ("200000 100000", 8, 2),
        ("150000 100000", 8, 2),
        ("50000 100000", 8, 1),
        ("400000 100000", 2, 2),
        ("nonsense", 4, 4),
    ],
)
def test_the_containers_quota_bounds_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, torchs: int, expected: int
) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota + "\n")
    monkeypatch.setattr(torch, "get_num_threads", lambda: torchs)
    assert cpus.available_cpus(file) == expected


def test_without_a_cgroup_torch_decides(tmp_path: Path) -> None:
    assert cpus.available_cpus(tmp_path / "absent") == torch.get_num_threads()
