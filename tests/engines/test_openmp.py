"""One OpenMP runtime in a process, whether torch or the native library comes first; each test starts its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from q8core.native import variants

NATIVE = "from q8core.native import load_library, runtime_threads; load_library()"
TORCH = "import torch; torch.ones(500, 500) @ torch.ones(500, 500)"
RUNTIMES = 'sorted({line.split()[-1] for line in open("/proc/self/maps") if "omp" in line.rpartition("/")[2]})'


@pytest.fixture(autouse=True)
def has_the_library() -> None:
    variants()


def run(program: str) -> object:
    end = subprocess.run([sys.executable, "-c", f"import json\n{program}"], capture_output=True, text=True, check=False)
    assert end.returncode == 0, end.stderr
    return json.loads(end.stdout)


@pytest.mark.parametrize("order", [(NATIVE,), (NATIVE, TORCH), (TORCH, NATIVE)])
def test_there_is_one_runtime(order: tuple[str, ...]) -> None:
    found = run("\n".join((*order, f"print(json.dumps({RUNTIMES}))")))
    assert isinstance(found, list)
    assert len(found) == 1
    assert found == run(f"{TORCH}\nprint(json.dumps({RUNTIMES}))")  # torch's own


def test_its_threads_are_torchs_setting() -> None:
    program = (
        f"{NATIVE}\n{TORCH}\nfound = []\nfor n in (1, 3):\n torch.set_num_threads(n)\n found += [runtime_threads()]"
    )
    assert run(f"{program}\nprint(json.dumps(found))") == [1, 3]


def test_without_torch_they_are_those_that_are_asked_for() -> None:
    program = f'import os\nos.environ["OMP_NUM_THREADS"] = "3"\n{NATIVE}\nprint(json.dumps(runtime_threads()))'
    assert run(program) == 3
