"""The end of a server beside connections that do not end: they are cut, in one line of the log."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2 as httpx

from tests.service.hosts.test_serve_command import finish, free_port
from tests.service.running import answers, start_command, wait_until

HEAD = b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
WITHOUT_REQUEST = {
    "nothing": b"",
    "half a line": b"POST /classify HT",
    "half the headers": HEAD,
    "answered": b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n",
}
WITH_HALF_A_BODY = {
    "length": HEAD + b"content-length: 100\r\n\r\n{",
    "chunks": HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n",
    "asked for": HEAD + b"expect: 100-continue\r\ncontent-length: 100\r\n\r\n",
    "behind an answer": b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n" + HEAD + b"content-length: 9\r\n\r\n{",
    "another route": b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{",
}


@contextmanager
def serving(*arguments: str | Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command, with time limits that no connection here reaches."""
    port = free_port()
    limits = ("--header-timeout-s", "200", "--body-timeout-s", "200", "--keep-alive-s", "200")
    process = start_command("--port", str(port), "--kernel", "fbgemm", *limits, *arguments)
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/readyz") or process.poll() is not None)
        yield process, port
    finally:
        process.kill()
        process.communicate()


def connect(stack: ExitStack, port: int, sent: bytes) -> socket.socket:
    connection = stack.enter_context(socket.socket())
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(240)
    connection.connect(("127.0.0.1", port))
    connection.sendall(sent)
    return connection


def open_all(stack: ExitStack, port: int) -> list[socket.socket]:
    return [connect(stack, port, sent) for sent in (*WITHOUT_REQUEST.values(), *WITH_HALF_A_BODY.values())]


def ask_for_much(stack: ExitStack, port: int) -> socket.socket:
    """A request whose answer is larger than what the kernel takes for a client that reads nothing."""
    body = json.dumps({"inputs": [""] * 60_000}).encode()
    return connect(stack, port, HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)


def check_log(err: str, line: str) -> None:
    for word in ("Traceback", "Exception", "CancelledError", " ERROR ", " CRITICAL "):
        assert word not in err, err
    warning = " WARNING service.hosts.single: "
    cut = [found.split(warning)[1] for found in err.splitlines() if warning in found]
    assert cut == [line], err


def ended(connection: socket.socket) -> bool:
    """Whether it ends without an answer."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def wait_for_metric(port: int, line: str) -> None:
    wait_until(lambda: line in httpx.get(f"http://127.0.0.1:{port}/metrics").text)


def test_sigterm_cuts_slow_connections_and_answers_the_accepted(classify_folder: Path, qa_folder: Path) -> None:
    folders = ("--checkpoint", classify_folder, "--checkpoint", qa_folder)
    # small batches: the accepted request takes a while
    small = ("--max-queue-tokens", "9999999", "--max-batch-tokens", "64")
    with serving(*folders, *small) as (process, port), ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        opened = open_all(stack, port)
        opened.append(connect(stack, port, b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"))  # small enough to leave unread
        body = {"question": "who?", "context": "by ada in paris " * 3000}
        accepted = pool.submit(httpx.post, f"http://127.0.0.1:{port}/qa", json=body, timeout=240)
        wait_for_metric(port, 'q8bert_requests_in_flight{backend="int8"} 1.0')
        process.send_signal(signal.SIGTERM)
        assert accepted.result().status_code == 200
        code, _, err = finish(process)
        assert len(opened) == len(WITHOUT_REQUEST) + len(WITH_HALF_A_BODY) + 1
    assert code == 0, err
    count = len(WITH_HALF_A_BODY)
    check_log(err, f"cut {count} connections: {count} requests had not arrived, 0 answers had not left")


def test_sigterm_cuts_an_answer_that_nobody_reads(classify_folder: Path) -> None:
    more = ("--max-queue-tokens", "9999999", "--max-batch-tokens", "65536")
    with serving("--checkpoint", classify_folder, *more) as (process, port), ExitStack() as stack:
        connection = ask_for_much(stack, port)
        assert connection.recv(9) == b"HTTP/1.1 "  # and no more
        process.send_signal(signal.SIGTERM)
        code, _, err = finish(process)
    assert code == 0, err
    check_log(err, "cut 1 connections: 0 requests had not arrived, 1 answers had not left")


def test_a_request_that_arrives_in_time_is_told(classify_folder: Path) -> None:
    with serving("--checkpoint", classify_folder) as (process, port), ExitStack() as stack:
        late = connect(stack, port, HEAD + b'content-length: 17\r\n\r\n{"inputs":')
        idle = connect(stack, port, b"")
        assert answers(f"http://127.0.0.1:{port}/livez")
        process.send_signal(signal.SIGTERM)
        assert ended(idle), "the shutdown has begun"
        late.sendall(b'"good"}')
        answer = late.recv(65536)
        code, _, err = finish(process)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"connection: close" in answer
    assert (code, "Traceback" in err, "WARNING service.hosts.single" in err) == (0, False, False), err


def test_a_second_signal_leaves_at_once_and_as_quietly(classify_folder: Path, qa_folder: Path) -> None:
    folders = ("--checkpoint", classify_folder, "--checkpoint", qa_folder)
    small = ("--max-queue-tokens", "9999999", "--max-batch-tokens", "64")
    body = json.dumps({"question": "who?", "context": "by ada in paris " * 20_000}).encode()
    head = HEAD.replace(b"/classify", b"/qa") + b"content-length: %d\r\n\r\n" % len(body)
    with serving(*folders, *small) as (process, port), ExitStack() as stack:
        opened = open_all(stack, port)
        opened.append(connect(stack, port, head + body))
        wait_for_metric(port, 'q8bert_requests_in_flight{backend="int8"} 1.0')
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: not answers(f"http://127.0.0.1:{port}/readyz"))
        process.send_signal(signal.SIGTERM)
        code, _, err = finish(process)
        assert ended(opened[-1])
    assert code == 0, err
    count = len(WITH_HALF_A_BODY)
    check_log(err, f"cut {count + 1} connections: {count} requests had not arrived, 1 answers had not left")
