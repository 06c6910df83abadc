"""Threads that wait go to sleep soon, unless the user wants it otherwise."""

from __future__ import annotations

import subprocess
import sys

import pytest

from q8core.waiting import SPIN_COUNT, spin_briefly


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"GOMP_SPINCOUNT": SPIN_COUNT}),
        ({"GOMP_SPINCOUNT": "5"}, {"GOMP_SPINCOUNT": "5"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_what_the_user_set_stays(before: dict[str, str], after: dict[str, str]) -> None:
    spin_briefly(before)
    assert before == after


def test_the_command_line_sets_it_before_torch_is_loaded() -> None:
    code = """
import os, sys, service.__main__ as command
command.app = lambda: print("torch" in sys.modules, os.environ["GOMP_SPINCOUNT"])
command.main()
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", SPIN_COUNT]
