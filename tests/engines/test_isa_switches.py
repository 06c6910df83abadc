"""The same answers on CPUs of other instruction sets, as the libraries' own switches make them of this one."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from q8core.native import variants
from q8core.native.library import VARIANT_NAMES
from tests.engines.bundled_answers import KERNELS, QUESTIONS, SENTENCES, answers

ROOT = Path(__file__).parents[2]
LARGEST_DIFFERENCE = 0.02
"""Of a score: float steps round in another order, and now and then an activation moves by one step of its grid."""

ONEDNN, FBGEMM, TORCH, NATIVE = SWITCHES = (
    "ONEDNN_MAX_CPU_ISA",
    "FBGEMM_ENABLE_INSTRUCTIONS",
    "ATEN_CPU_CAPABILITY",
    "Q8BERT_MAX_ISA",
)
# Each is a process. They are separate switches of separate libraries, so that one process tries several.
CPUS: dict[str, dict[str, str]] = {
    "avx2": {ONEDNN: "AVX2", FBGEMM: "AVX2", NATIVE: "avx2"},
    "avx512": {ONEDNN: "AVX512_CORE", FBGEMM: "AVX512", NATIVE: "avx512_vnni"},
    "vnni": {ONEDNN: "AVX512_CORE_VNNI", FBGEMM: "AVX512_E1", NATIVE: "avx_vnni"},
    "torch-avx2": {TORCH: "avx2", FBGEMM: "AVX512_256"},
    "torch-plain": {TORCH: "default", FBGEMM: "AVX512_E1_256", NATIVE: "portable"},
}
EACH_CPU = pytest.mark.parametrize("cpu", CPUS)
pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the switches are for x86")


@pytest.fixture(scope="module")
def processes() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """All at once, each on one thread: most of their time is importing."""
    plain = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    command = [sys.executable, "-m", "tests.engines.bundled_answers"]
    with ExitStack() as stack:
        started: dict[str, subprocess.Popen[str]] = {}
        for name, switches in CPUS.items():
            process = subprocess.Popen(command, env={**plain, **switches}, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            started[name] = stack.enter_context(process)
            stack.callback(process.kill)
        yield started


@pytest.fixture(scope="module")
def restricted(processes: dict[str, subprocess.Popen[str]]) -> dict[str, dict[str, Any]]:
    """CPU -> kernel -> what it says."""
    outputs = {name: process.communicate()[0] for name, process in processes.items()}
    assert not any(process.returncode for process in processes.values())
    return {name: json.loads(output.splitlines()[-1]) for name, output in outputs.items()}


@pytest.fixture(scope="module")
def unrestricted(processes: dict[str, subprocess.Popen[str]]) -> dict[str, Any]:
    """Kernel -> what it says without a switch, while the others compute."""
    return json.loads(json.dumps({kernel: answers(kernel) for kernel in KERNELS}))


@EACH_CPU
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_answers_are_the_same(
    cpu: str, kernel: str, unrestricted: dict[str, Any], restricted: dict[str, dict[str, Any]]
) -> None:
    expected, found = unrestricted[kernel], restricted[cpu][kernel]
    if "refused" in expected:
        pytest.skip(expected["refused"])
    assert "refused" not in found, found["refused"]
    for kind, texts in (("sentiments", SENTENCES), ("spans", QUESTIONS)):
        for text in texts:
            (label, score), (other, other_score) = expected[kind][text], found[kind][text]
            assert label == other, text
            assert abs(score - other_score) <= LARGEST_DIFFERENCE, text


@EACH_CPU
def test_the_native_kernel_gives_the_same_bits(
    cpu: str, unrestricted: dict[str, Any], restricted: dict[str, dict[str, Any]]
) -> None:
    for kind in ("sentiments", "spans"):
        assert restricted[cpu]["native"][kind] == unrestricted["native"][kind]


def test_the_switches_had_an_effect(restricted: dict[str, dict[str, Any]]) -> None:
    """Or everything above would compare a CPU with itself."""
    assert restricted["torch-plain"]["fp32-onednn"]["isa"] == "DEFAULT"
    assert restricted["torch-avx2"]["fp32-onednn"]["isa"] == "AVX2"
    for cpu in ("avx2", "avx512"):  # without VNNI, products of bytes are added in 16 bits
        assert restricted[cpu]["onednn"]["exactness"] == "split weights (this CPU saturates)"
        assert restricted[cpu]["fbgemm"]["exactness"] == "split weights (this CPU saturates)"
    for cpu, switches in CPUS.items():
        allowed = VARIANT_NAMES[VARIANT_NAMES.index(switches.get(NATIVE, VARIANT_NAMES[0])) :]
        assert restricted[cpu]["native"]["isa"] == next(name for name in allowed if name in variants())


def test_all_answers_are_right(unrestricted: dict[str, Any]) -> None:
    """So that what is compared is worth comparing."""
    for kernel, found in unrestricted.items():
        assert [found["sentiments"][text][0] for text in (SENTENCES[0], SENTENCES[1])] == ["positive", "negative"]
        assert "Gustave Eiffel" in found["spans"][QUESTIONS[0]][0], kernel
        assert "1930" in found["spans"][QUESTIONS[2]][0], kernel
