"""``q8bert serve`` as a process: starts, drains, and fails with a sentence and an exit code."""

from __future__ import annotations

import json
import logging
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest

from service.__main__ import main
from tests.service.running import answers, start_command, wait_until

Run = Callable[..., tuple[int, str, str]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def run_main(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run the command in this process: the same `main`, without paying for another interpreter."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["q8bert", "serve", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capfd.readouterr()

    yield run
    root.handlers[:], root.level = handlers, level


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=280)
    return process.returncode, out, err


def test_sigterm_answers_what_was_accepted_and_exits_with_0(classify_folder: Path, qa_folder: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = start_command("--checkpoint", classify_folder, "--checkpoint", qa_folder, "--port", str(port))
    stop = threading.Event()
    codes: list[int] = []
    dropped: list[Exception] = []

    def hammer() -> None:
        with httpx.Client(base_url=url, timeout=240) as client:
            while not stop.is_set():
                try:
                    codes.append(client.post("/qa", json={"question": "who?", "context": "by ada " * 200}).status_code)
                except httpx.ConnectError:
                    return  # not accepted any more: the listener is closed
                except httpx.TransportError as error:
                    dropped.append(error)
                    return

    try:
        wait_until(lambda: answers(f"{url}/readyz") or process.poll() is not None)
        assert httpx.get(f"{url}/info").json()["default_backend"] == "int8"
        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(hammer) for _ in range(4)]
            wait_until(lambda: len(codes) > 8)
            process.send_signal(signal.SIGTERM)
            code, _, err = finish(process)
            stop.set()
            for job in jobs:
                job.result()
    finally:
        process.kill()
    assert code == 0, err
    assert set(codes) <= {200, 503}
    assert codes.count(200) > 8
    # a kept-alive connection that was idle when it was closed may lose the request that was just being sent
    assert all(isinstance(error, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError) for error in dropped)
    assert "Traceback" not in err


def test_accepted_request_survives_sigterm(qa_folder: Path) -> None:
    port = free_port()
    process = start_command(
        "--checkpoint", qa_folder, "--port", str(port), "--max-batch-tokens", "64", "--max-queue-tokens", "9999999"
    )
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/readyz") or process.poll() is not None)
        with ThreadPoolExecutor(1) as pool:
            body = {"question": "who?", "context": "by ada in paris " * 3000}
            job = pool.submit(httpx.post, f"http://127.0.0.1:{port}/qa", json=body, timeout=240)
            in_flight = 'q8bert_requests_in_flight{backend="int8"} 1.0'
            wait_until(lambda: in_flight in httpx.get(f"http://127.0.0.1:{port}/metrics").text)
            process.send_signal(signal.SIGTERM)
            assert job.result().status_code == 200
        assert finish(process)[0] == 0
    finally:
        process.kill()


def test_interrupt_is_a_clean_end_too(classify_folder: Path) -> None:
    port = free_port()
    process = start_command("--port", str(port), Q8BERT_CHECKPOINT=str(classify_folder), Q8BERT_BACKENDS="int8")
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/readyz") or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        code, _, err = finish(process)
    finally:
        process.kill()
    assert code == 0, err


def test_port_in_use_is_a_sentence(classify_folder: Path, run_main: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, out, err = run_main("--checkpoint", classify_folder, "--port", str(port))
    assert code == 2
    assert re.fullmatch(rf"error: cannot listen on 127.0.0.1 port {port}: .+; choose another with --port\n", err)
    assert out == ""


def flip_a_byte(folder: Path) -> None:
    file = folder / "model.int8.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(folder: Path) -> None:
    file = folder / "model.int8.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def only_pickle(folder: Path) -> None:
    for name in ("q8bert.json", "model.int8.safetensors", "model.safetensors"):
        (folder / name).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def wrong_golden(folder: Path) -> None:
    manifest = json.loads((folder / "q8bert.json").read_text())
    manifest["golden"][0]["logits"]["int8"][0] += 1.0
    (folder / "q8bert.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "exit_code", "words"),
    [
        (flip_a_byte, 3, "sha256"),
        (truncate, 3, "truncated"),
        (only_pickle, 3, "pickle"),
        (shutil.rmtree, 3, "not a folder"),
        (wrong_golden, 4, "golden inputs on int8"),
    ],
)
def test_damaged_checkpoint_is_a_sentence(
    classify_folder: Path, tmp_path: Path, run_main: Run, damage: object, exit_code: int, words: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(classify_folder, folder)
    damage(folder)  # type: ignore[operator]
    code, _, err = run_main("--checkpoint", folder, "--port", "0", "--log-level", "error", "--kernel", "fbgemm")
    assert code == exit_code, err
    sentences = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1
    assert words in sentences[0]
    assert "Traceback" not in err


def test_dry_run_prints_info_and_ends(classify_folder: Path, run_main: Run) -> None:
    code, out, err = run_main("--checkpoint", classify_folder, "--dry-run", "--kernel", "fbgemm")
    assert code == 0, err
    model = json.loads(out)["models"]["tiny-classify"]
    assert model["name"] == "tiny-classify"
    assert set(model["backends"]) == {"fp32", "int8"}
    assert model["backends"]["int8"]["memory_bytes"]["weights"] < model["backends"]["fp32"]["memory_bytes"]["weights"]


def test_wrong_option_is_a_sentence(run_main: Run) -> None:
    code, _, err = run_main("--port", "70000")
    assert code == 2
    assert err.startswith("error: --port is 70000")
