"""The process that reads pickles: what it takes, what it refuses, and what it could do at worst."""

from __future__ import annotations

import collections
import json
import os
import pickle
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from q8core.errors import CheckpointError
from q8core.importing import unpickle as parent
from q8core.importing.unpickle import PROCESS, unpickle
from q8core.say_once import warn_once
from tests.importing.hub_folders import pickled

SECRETS = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "Q8BERT_API_KEYS", "SSH_AUTH_SOCK")


class RunsCode:
    """Unpickling it without care runs a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.mark}",)


def fake_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> Path:
    """Let another program run in place of the one that reads pickles; returns a file for it to read."""
    (tmp_path / "program.py").write_text(program)
    monkeypatch.setattr(parent, "PROCESS", tmp_path / "program.py")
    (tmp_path / "some.bin").write_bytes(b"x")
    return tmp_path / "some.bin"


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_does_not_run(zipped: bool, tmp_path: Path) -> None:
    mark, file = tmp_path / "OWNED", tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(2), "b": RunsCode(mark)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"loading it would run code or build objects: .*(posix|os)\.system"):
        unpickle(file, tmp_path / "out")
    assert not mark.exists()
    with warnings.catch_warnings():  # the same file does run it where nobody looks: the test can fail
        warnings.simplefilter("ignore")
        torch.load(file, weights_only=False)
    assert mark.exists()


def test_a_folder_with_code_in_its_pickle_leaves_nothing(refused, tiny_classifier: Path, tmp_path: Path) -> None:
    mark = tmp_path / "OWNED"
    folder = pickled(tiny_classifier, tmp_path / "it", tensors={"a": RunsCode(mark)})
    assert f"{folder / 'pytorch_model.bin'} is refused: loading it would run code" in refused(folder)
    assert not mark.exists()


def test_shared_storages_views_and_all_dtypes(tmp_path: Path) -> None:
    table = torch.randn(5, 4)
    tensors = collections.OrderedDict(
        table=table,
        tied=table,
        turned=table.t(),
        rows=torch.nn.Parameter(table[1:3]),
        spread=torch.ones(1).expand(7),
        half=torch.randn(3).half(),
        brain=torch.randn(3).bfloat16(),
        double=torch.randn(3).double(),
        ids=torch.arange(4)[None],
    )
    tensors._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]  # as torch's state dicts have
    torch.save(tensors, tmp_path / "file.bin")
    unpickle(tmp_path / "file.bin", tmp_path / "out")
    found = load_file(tmp_path / "out")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor.detach())
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o666 & ~mask


def test_damaged_and_foreign_pickles(tmp_path: Path) -> None:
    """All by one start of the process' own functions: each start takes seconds."""
    table, files = torch.randn(5, 4), tmp_path / "files"
    files.mkdir()
    torch.save({"a": table}, files / "good")
    torch.save({"a": table}, files / "old", _use_new_zipfile_serialization=False)
    (files / "half").write_bytes((files / "good").read_bytes()[:300])
    (files / "old half").write_bytes((files / "old").read_bytes()[:-10])
    (files / "empty").touch()
    (files / "text").write_text("<html>not found</html>")
    torch.save({"state_dict": {"a": table}, "epoch": 3}, files / "training state")
    torch.save([table], files / "list")
    torch.save({}, files / "nothing")
    torch.save({"a": torch.eye(3).to_sparse()}, files / "sparse")
    torch.save({"a": torch.empty(3, device="meta")}, files / "meta")
    torch.save(torch.nn.Linear(2, 2), files / "module")
    (files / "plain").write_bytes(pickle.dumps({"a": RunsCode(tmp_path / "OWNED")}, protocol=2))
    process = runpy.run_path(str(PROCESS))
    reasons: dict[str, str] = {}
    for path in sorted(files.iterdir()):
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                process["read"](file)
            except process["RefusedError"] as error:
                reasons[path.name] = str(error)
    assert not (tmp_path / "OWNED").exists()
    for name, reason in {
        "half": "cannot be converted: .*zip archive",
        "old half": "cannot be converted: unexpected EOF",
        "empty": "cannot be converted: EOFError",
        "text": "cannot be converted",
        "training state": "it holds dict under 'state_dict'; tensors by name are expected",
        "list": "it holds list",
        "nothing": "it holds dict",
        "sparse": "a is sparse",
        "meta": "a is sparse, quantized or without values",
        "module": "build objects: Unsupported global: GLOBAL torch.nn.modules.linear.Linear",
        "plain": "run code",
    }.items():
        assert re.search(reason, reasons.pop(name)), name
    assert reasons == {}


def test_a_truncated_pickle_is_one_sentence(refused, tiny_classifier: Path, tmp_path: Path) -> None:
    folder = pickled(tiny_classifier, tmp_path / "it")
    content = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(content[: len(content) // 2])
    assert "pytorch_model.bin is refused: it cannot be converted" in refused(folder)


def test_a_bomb_is_stopped_by_the_limits(tmp_path: Path) -> None:
    """Four bytes that claim to be 4 GB, which most machines would give."""
    torch.save({"a": torch.ones(1).expand(10**9)}, tmp_path / "file.bin")
    with pytest.raises(CheckpointError, match="its tensors need more memory than weights of its size do"):
        unpickle(tmp_path / "file.bin", tmp_path / "out")


def test_the_process_knows_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, "a secret")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/usr/lib")
    program = """
import json, os, sys
open(sys.argv[2], "w").write(json.dumps([dict(os.environ), os.listdir("/proc/self/fd"), sys.stdin.read()]))
print(json.dumps({"network": None}))
"""
    file = fake_process(tmp_path, monkeypatch, program)
    listening = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(listening, True)
    unpickle(file, tmp_path / "out")
    os.close(listening)
    environment, descriptors, given = json.loads((tmp_path / "out").read_text())
    allowed = {"PYTHONPATH", "PATH", "HOME", "TMPDIR", "LC_ALL", "OMP_NUM_THREADS", "LD_LIBRARY_PATH"}
    assert environment.keys() - {"LC_CTYPE"} == allowed
    assert "a secret" not in environment.values()
    assert environment["HOME"] == str(tmp_path)
    assert len(descriptors) <= 5  # the three of every process, the file that is written, and the listing itself
    assert given == ""


def test_a_process_that_crashes_hangs_or_talks_nonsense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parent, "_SECONDS", 2)
    for program, reason in (
        ("import os; os.abort()", r"was stopped by SIGABRT; the file is damaged, or needs more"),
        ("import time; time.sleep(60)", "reading it took longer than 2 s"),
        ("raise ValueError('no such thing')", "failed with 1: ValueError: no such thing"),
        ("print('hello')", "failed with 0: it said nothing"),
        ("print('[]')", "failed with 0"),
        ("", "failed with 0"),
    ):
        file = fake_process(tmp_path, monkeypatch, program)
        with pytest.raises(CheckpointError, match=reason) as error:
            unpickle(file, tmp_path / "out")
        assert str(error.value).startswith(f"{file} is refused: ")


def test_a_process_with_a_network_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    program = "import sys; open(sys.argv[2], 'w'); print('{\"network\": \"Operation not permitted\"}')"
    file = fake_process(tmp_path, monkeypatch, program)
    warn_once.cache_clear()
    unpickle(file, tmp_path / "out")
    assert "a process with a network, because none without could be made here (Operation not permitted)" in caplog.text


# What code in a pickle could do if the unpickler let it run: prints what each attempt came to.
ATTEMPTS = """
import json, os, runpy, socket, sys
process = runpy.run_path(sys.argv[1])
network = process["leave_network"]()
interfaces = sorted(line.split(":")[0].strip() for line in open("/proc/net/dev").read().splitlines()[2:])
process["limit"](1 << 31, 30, 1 << 20)
found = {"network": network, "interfaces": interfaces}
def attempt(name, act):
    try:
        act()
        found[name] = "done"
    except (OSError, MemoryError) as error:
        found[name] = type(error).__name__ if isinstance(error, MemoryError) else os.strerror(error.errno)
def write_much():
    with open(sys.argv[2], "wb") as file:
        file.write(bytes(2 << 20))
attempt("write much", write_much)
attempt("take memory", lambda: bytearray(3 << 30))
process["open_nothing_more"]()
attempt("socket", socket.socket)
attempt("file", lambda: open(sys.argv[1]))
attempt("new file", lambda: open(sys.argv[2], "w"))
attempt("pipe", os.pipe)
print(json.dumps(found))
"""


def test_what_code_could_do_if_it_ran(tmp_path: Path) -> None:
    program = [sys.executable, "-c", ATTEMPTS, str(PROCESS), str(tmp_path / "new")]
    end = subprocess.run(program, capture_output=True, text=True, check=True)
    found = json.loads(end.stdout)
    for name in ("socket", "file", "new file", "pipe"):
        assert found[name] == "Too many open files", name
    assert found["write much"] == "File too large"
    assert found["take memory"] == "MemoryError"
    if found["network"] is not None:
        pytest.skip(f"no network namespace can be made here: {found['network']}")
    assert found["interfaces"] == ["lo"]  # which is down: nothing can be reached, this machine neither
