"""``q8bert loadtest``: its options; the work is done in `service.loadtest.run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from q8core.cli.options import JsonFile
from q8core.errors import InputError

MAX_RATE, MAX_DURATION_S, MAX_CLIENTS = 5000.0, 300.0, 1024


def loadtest(
    url: Annotated[str, typer.Argument(help="The service, such as http://127.0.0.1:8000.")],
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Requests per second, at random times (open loop). [default: 10]")
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Instead of --rate: clients that ask again as soon as they are answered."),
    ] = None,
    duration: Annotated[float, typer.Option(min=0.1, help="Seconds that count.")] = 10.0,
    warmup: Annotated[float, typer.Option(min=0, help="Seconds before, under the same load.")] = 1.0,
    task: Annotated[
        list[str] | None, typer.Option(help="classify, qa or compare; repeatable: drawn at random. [default: classify]")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="JSON Lines of request bodies. [default: built-in texts of real texts' lengths]"),
    ] = None,
    backend: Annotated[str | None, typer.Option(help="fp32 or int8. [default: the server's]")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File with the key to send.")] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds from sending to giving up.")] = 30.0,
    connections: Annotated[int, typer.Option(min=1, help="Most requests under way; others wait, and are late.")] = 2048,
    seed: Annotated[int, typer.Option(help="Of arrival times and the choice of requests.")] = 0,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Aim at another machine; it must be yours.")
    ] = False,
    no_limits: Annotated[
        bool,
        typer.Option(
            "--no-limits", help=f"Allow more than {MAX_DURATION_S:g} s, {MAX_RATE:g}/s or {MAX_CLIENTS} clients."
        ),
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw latencies into this PNG: pip install 'q8bert[plot]' first.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Send requests to a running service at a fixed rate and report latencies, throughput, refusals and failures.

    Latency is measured from when a request should have been sent, so that a stall counts for every request it delays.
    Exit code 1: nothing was answered.
    """
    if rate is not None and concurrency is not None:
        raise InputError("--rate and --concurrency exclude each other: an open loop has a rate, a closed one clients")
    if concurrency is None and rate is None:
        rate = 10.0
    for option, value, limit in (
        ("--rate", rate or 0, MAX_RATE),
        ("--concurrency", concurrency or 0, MAX_CLIENTS),
        ("--duration", duration + warmup, MAX_DURATION_S),
    ):
        if value > limit and not no_limits:
            raise InputError(f"{option} is {value:g}; more than {limit:g} is taken only with --no-limits")
    if json_file is not None and not json_file.parent.is_dir():
        raise InputError(f"--json {json_file}: the folder {json_file.parent} does not exist")
    from service.loadtest.load import Load
    from service.loadtest.run import run

    answered = run(
        url,
        Load(rate, concurrency, duration, warmup, timeout, connections, seed),
        tasks=task or ["classify"],
        file=file,
        backend=backend,
        api_key_file=api_key_file,
        allow_remote=allow_remote,
        plot=plot,
        json_file=json_file,
    )
    if not answered:
        raise typer.Exit(1)
