from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from q8core import cpus
from q8core.errors import InputError


@pytest.mark.parametrize(
    ("quota", "wanted", "expected"),
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, wanted: int, expected: int
) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota + "\n")
    monkeypatch.setenv("OMP_NUM_THREADS", str(wanted))
    assert cpus.available_cpus(file) == expected


def test_without_a_cgroup_there_are_as_many_as_torch_finds(tmp_path: Path) -> None:
    """In a process of its own, in which nobody has set another number."""
    program = (
        f"import torch\nfrom pathlib import Path\nfrom q8core import cpus\n"
        f"print(cpus.available_cpus(Path({str(tmp_path)!r}, 'absent')), torch.get_num_threads())"
    )
    end = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    ours, torchs = end.stdout.split()
    assert ours == torchs


def test_the_two_threads_of_a_core_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 5})
    for cpu, siblings in {0: "0,4", 1: "1,5", 2: "2,6", 4: "0,4", 5: "1,5", 6: "2,6"}.items():
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    assert cpus.available_cpus(tmp_path / "absent", tmp_path) == 3
    assert cpus.available_cpus(tmp_path / "absent", tmp_path / "no topology") == 4


def test_levels_of_threads_count_by_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert cpus.available_cpus(tmp_path / "absent") == 3


@pytest.mark.parametrize("wanted", ["0", "-1", "many", ",2"])
def test_a_number_of_threads_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    with pytest.raises(InputError, match=f"OMP_NUM_THREADS is '{wanted}'"):
        cpus.available_cpus()
