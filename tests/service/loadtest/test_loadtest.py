from __future__ import annotations

import asyncio
import json
import math
import random
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from typer.testing import CliRunner

from q8core.bench.sample_lengths import SQUAD, SST2
from q8core.cli import app as cli
from q8core.errors import InputError
from service.http.app import create_app
from service.loadtest.bodies import load_asks, sample_bodies
from service.loadtest.command import loadtest
from service.loadtest.load import Load, Record, Sample, arrivals, run_load
from service.loadtest.summary import Spread, Summary, percentile, summarize
from service.loadtest.target import parse_target
from service.settings import Settings
from tests.service.conftest import open_registry
from tests.service.running import running_server

Answer = Callable[[int, bytes], Awaitable[bytes | None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-inference-time: 0.5\r\nx-compute-tokens: 7\r\n\r\n[]"
BUSY_BODY = b'{"error": "full", "error_type": "queue_full"}'
BUSY = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 3\r\ncontent-length: %d\r\n\r\n%s" % (len(BUSY_BODY), BUSY_BODY)


@contextmanager
def fake_server(answer: Answer) -> Iterator[str]:
    """A server that answers its n-th request with the given bytes; None closes the connection instead."""
    ready, number = threading.Event(), iter(range(10**6))
    started: list[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
                body = await reader.readexactly(length)
                reply = await answer(next(number), head + body)
                if reply is None:
                    break
                writer.write(reply)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def run() -> None:
        stop = asyncio.Event()
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        started.append((asyncio.get_running_loop(), stop, server.sockets[0].getsockname()[1]))
        ready.set()
        await stop.wait()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    ready.wait()
    [(loop, stop, port)] = started
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def load_of(**changes: Any) -> Load:
    values: dict[str, Any] = {
        "rate": 200.0,
        "concurrency": None,
        "duration_s": 1.0,
        "warmup_s": 0.0,
        "timeout_s": 20.0,
        "connections": 64,
        "seed": 0,
    }
    return Load(**{**values, **changes})


def ask_it(answer: Answer, **changes: Any) -> tuple[Record, Summary]:
    load = load_of(**changes)
    with fake_server(answer) as url:
        target = parse_target(url, allow_remote=False)
        record = run_load(target, load_asks(target, ["classify"], None, None, None), load)
    return record, summarize(record, load)


async def at_once(_: int, __: bytes) -> bytes:
    return OK


def stalling() -> Answer:
    """Answers the 20th request, and everything after it that has come by then, one second late; else at once."""
    until: list[float] = []

    async def answer(number: int, _: bytes) -> bytes:
        now = asyncio.get_running_loop().time()
        if number == 20:
            until.append(now + 1)
        if until:
            await asyncio.sleep(max(0.0, until[0] - now))
        return OK

    return answer


def test_a_stall_is_felt_by_all_who_would_have_come() -> None:
    # one connection: whoever waits for its answer sends nothing, and the stall holds up a single sent request
    record, summary = ask_it(stalling(), rate=100.0, duration_s=2.0, connections=1)
    assert summary.latency["classify"]["200"].count == len(record.samples)
    from_intended = sorted(sample.finished - sample.intended for sample in record.samples)
    from_sending = sorted(sample.finished - sample.sent for sample in record.samples)
    late = sum(value > 0.25 for value in from_intended)
    assert late > 50  # about 75 of 100 that should have come in this second
    assert sum(value > 0.25 for value in from_sending) < late / 2  # one, on a machine that does not stall itself
    assert summary.latency["classify"]["200"].p90 > 250  # type: ignore[operator]
    assert summary.lateness.p90 > 250  # type: ignore[operator]  # and it is not hidden that they were sent late


def test_open_loop_does_not_wait_for_answers() -> None:
    most, now = [0], [0]

    async def answer(_: int, __: bytes) -> bytes:
        now[0] += 1
        most[0] = max(most[0], now[0])
        await asyncio.sleep(0.5)
        now[0] -= 1
        return OK

    record, _ = ask_it(answer, rate=100.0, duration_s=1.0)
    assert most[0] > 20
    assert len(record.samples) == len(list(arrivals(100.0, 1.0, random.Random(0))))


def test_outcomes_are_told_apart() -> None:
    async def answer(number: int, _: bytes) -> bytes | None:
        replies = [OK, BUSY, b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n", None, b"not HTTP\r\n\r\n"]
        if number % 6 == 5:
            await asyncio.sleep(30)
        return replies[number % 6]

    record, summary = ask_it(answer, duration_s=0.6, timeout_s=2.0)
    outcomes = summary.latency["classify"]
    assert set(outcomes) == {"200", "429 queue_full", "500", "connection", "timeout"}
    assert sum(spread.count for spread in outcomes.values()) == len(record.samples) == summary.requests
    assert outcomes["connection"].count == pytest.approx(2 * outcomes["200"].count, abs=2)
    assert outcomes["timeout"].p50 >= 2000  # type: ignore[operator]
    assert summary.retry_after is not None
    assert (summary.retry_after.count, summary.retry_after.median) == (outcomes["429 queue_full"].count, 3.0)
    assert summary.from_sending.count == outcomes["200"].count
    assert record.complete


def test_requests_that_never_left_are_counted_too() -> None:
    async def never(_: int, __: bytes) -> bytes:
        await asyncio.sleep(30)
        return OK

    _, summary = ask_it(never, rate=50.0, duration_s=0.5, timeout_s=0.4, connections=1)
    outcomes = summary.latency["classify"]
    assert outcomes["timeout"].count >= 3
    assert outcomes["unsent"].count > 5
    assert sum(spread.count for spread in outcomes.values()) == summary.requests


def test_closed_loop_keeps_its_clients_busy() -> None:
    now, most = [0], [0]

    async def answer(_: int, __: bytes) -> bytes:
        now[0] += 1
        most[0] = max(most[0], now[0])
        await asyncio.sleep(0.01)
        now[0] -= 1
        return OK

    record, summary = ask_it(answer, rate=None, concurrency=5, duration_s=0.5)
    assert most[0] == 5
    assert 0 <= len(record.samples) - summary.answered_per_s * 0.5 <= 5 + 1e-6  # the last ones came too late
    assert summary.tokens_per_s == pytest.approx(7 * summary.answered_per_s, rel=1e-3)
    assert summary.outside_inference.p50 == pytest.approx(summary.from_sending.p50 - 0.5, abs=0.002)  # type: ignore[operator]


def test_connections_are_kept_and_the_bytes_are_those_of_the_options() -> None:
    seen: list[bytes] = []

    async def answer(_: int, request: bytes) -> bytes:
        seen.append(request)
        return OK

    with fake_server(answer) as url:
        target = parse_target(url + "/below/", allow_remote=False)
        asks = load_asks(target, ["qa"], None, "fp32", "key")
        run_load(target, asks, load_of(rate=20.0, duration_s=0.5))
    head, _, body = seen[0].partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /below/qa HTTP/1.1"
    assert {f"host: {url.removeprefix('http://')}", "x-q8bert-backend: fp32", "authorization: Bearer key"} < set(lines)
    assert set(json.loads(body)["inputs"]) == {"question", "context"}


def test_warm_up_is_asked_and_not_counted() -> None:
    record, summary = ask_it(at_once, warmup_s=0.5, duration_s=0.5)
    assert summary.requests == sum(sample.intended >= 0.5 for sample in record.samples) < len(record.samples)
    assert sum(second.asked for second in summary.per_second) == len(record.samples)


@pytest.mark.parametrize("url", ["http://192.0.2.1:8000", "https://198.51.100.7", "http://[2001:db8::1]:80"])
def test_another_machine_is_refused_unless_asked_for(url: str) -> None:
    with pytest.raises(InputError, match="--allow-remote"):
        parse_target(url, allow_remote=False)
    assert parse_target(url, allow_remote=True).address in url


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000", "http://127.8.9.1", "http://[::1]:8000", "http://localhost/x"]
)
def test_this_machine_is_taken(url: str) -> None:
    target = parse_target(url, allow_remote=False)
    assert url.startswith(f"http://{target.authority}")


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8000", "ftp://127.0.0.1", "http://", "http://127.0.0.1:99999", "http://u:p@127.0.0.1", "http://[::1"],
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(InputError, match="URL"):
        parse_target(url, allow_remote=False)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=300).map(sorted), st.sampled_from([50.0, 90.0, 99.0]))
def test_percentiles_are_numpys(values: list[float], p: float) -> None:
    found = percentile(values, p)
    if found is None:
        assert len(values) * (100 - p) / 100 < 1
    else:
        assert found == numpy.percentile(values, p, method="inverted_cdf")


def test_arrivals_are_a_poisson_process_and_the_same_for_a_seed() -> None:
    times = list(arrivals(1000.0, 20.0, random.Random(3)))
    assert times == list(arrivals(1000.0, 20.0, random.Random(3))) != list(arrivals(1000.0, 20.0, random.Random(4)))
    gaps = numpy.diff(times)
    assert len(times) == pytest.approx(20_000, abs=5 * math.sqrt(20_000))
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # exponential
    assert times[-1] < 20


def test_built_in_texts_have_the_lengths_of_real_ones() -> None:
    checkpoints = Path(__file__).parents[3] / "service" / "checkpoints"
    tokenizer = Tokenizer.from_file(str(next(checkpoints.glob("*/tokenizer.json"))))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for task, lengths in (("classify", SST2), ("qa", SQUAD)):
        for body, expected in zip(sample_bodies(task), lengths, strict=True):
            inputs = json.loads(body)["inputs"]
            texts = [inputs] if isinstance(inputs, str) else [inputs["question"], inputs["context"]]
            assert len(tokenizer.encode(*texts).ids) == expected


def run_command(*arguments: object) -> Any:
    """Run the command as the command line would."""
    if "loadtest" not in {command.name or command.callback.__name__ for command in cli.registered_commands}:
        cli.command()(loadtest)
    return CliRunner().invoke(cli, ["loadtest", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", 5001], "--no-limits"),
        (["--concurrency", 1025], "--no-limits"),
        (["--duration", 301], "--no-limits"),
        (["--rate", 1, "--concurrency", 1], "exclude"),
        (["--task", "x"], "classify, qa, compare"),
        (["--task", "compare", "--backend", "int8"], "exclude"),
        (["--file", "none.jsonl"], "cannot be read"),
        (["--task", "qa", "--task", "classify", "--file", "none.jsonl"], "one task"),
        (["--json", "none/x.json"], "does not exist"),
        (["--plot", "x.jpg"], "PNG"),
        (["--api-key-file", "none"], "cannot be read"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_sent(arguments: list[object], message: str) -> None:
    end = run_command("http://127.0.0.1:9", *arguments)
    assert isinstance(end.exception, InputError)
    assert message in str(end.exception)


def test_a_file_with_a_bad_line_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "bodies.jsonl"
    file.write_text('{"inputs": "x"}\n\n{oops\n')
    end = run_command("http://127.0.0.1:9", "--file", file)
    assert f"{file}, line 3: not valid JSON" in str(end.exception)
    file.write_text("\n")
    assert "no request bodies" in str(run_command("http://127.0.0.1:9", "--file", file).exception)


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85"])
def test_only_newlines_end_a_body(tmp_path: Path, character: str) -> None:
    bodies = [{"inputs": f"a{character}b"}, {"inputs": "c"}]
    file = tmp_path / "bodies.jsonl"
    file.write_text("".join(json.dumps(body, ensure_ascii=False) + "\n" for body in bodies), encoding="utf-8")
    asks = load_asks(parse_target("http://127.0.0.1:9", allow_remote=False), ["classify"], file, None, None)
    assert [json.loads(ask.payload.partition(b"\r\n\r\n")[2]) for ask in asks] == bodies


def test_nothing_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        end = run_command(f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert isinstance(end.exception, InputError)
    assert "nothing answers" in str(end.exception)


def test_the_command_against_the_real_service(classify_folder: Path, tmp_path: Path) -> None:
    app = create_app(Settings(threads=1), open_registry(classify_folder))
    file = tmp_path / "bodies.jsonl"
    file.write_text('{"inputs": "a good film"}\n{"inputs": ["bad", "good"], "backend": "fp32"}\n')
    report, picture = tmp_path / "report.json", tmp_path / "picture.png"
    with running_server(app) as url:
        end = run_command(
            url, "--file", file, "--rate", 40, "--duration", 1, "--warmup", 0.2, "--json", report, "--plot", picture
        )
        assert end.exit_code == 0, end.output
        bad = tmp_path / "bad.jsonl"
        bad.write_text('{"inputs": 3}\n')
        refused = run_command(url, "--file", bad, "--concurrency", 2, "--duration", 0.3, "--warmup", 0)
    found = json.loads(report.read_text())
    assert found["complete"] is True
    assert found["settings"]["rate"] == 40
    assert set(found["latency"]["classify"]) == {"200"}
    assert found["requests"] == found["latency"]["classify"]["200"]["count"] == found["outside_inference"]["count"]
    assert found["tokens_per_s"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "classify 200" in end.output
    assert refused.exit_code == 1
    assert "422 validation" in refused.output


def test_the_picture_has_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from service.loadtest.plot import draw_load

    outcomes = ["200"] * 50 + ["429 queue_full"] * 5 + ["timeout"]
    samples = [Sample("qa", name, n / 10, n / 10, n / 10 + 0.01 * (n + 1)) for n, name in enumerate(outcomes)]
    load = load_of(duration_s=6.0)
    figure = draw_load(samples, summarize(Record(samples, 6.0), load), load, "title")
    course, ranks = figure.axes
    labels = [text.get_text() for text in course.get_legend().get_texts()]
    assert labels == ["answered (50)", "refused (5)", "failed (1)", "median of each second"]
    assert [line.get_label() for line in ranks.get_lines()] == ["answered", "refused", "failed"]


def test_a_spread_without_enough_values_says_so() -> None:
    assert Spread.of([]) == Spread(0, None, None, None, None, None)
    assert Spread.of([0.001]) == Spread(1, 1.0, None, None, None, 1.0)
    hundred = Spread.of(n / 1000 for n in range(1, 101))
    assert hundred == Spread(100, 50.0, 90.0, 99.0, None, 100.0)
