"""The work of `q8bert loadtest`: check the options, send, print, write."""

from __future__ import annotations

import json
import resource
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from q8core.cli.console import table_console
from q8core.errors import InputError
from q8core.text_file import read_text
from service.loadtest.bodies import load_asks
from service.loadtest.load import Load, run_load
from service.loadtest.summary import summarize
from service.loadtest.table import summary_lines, summary_table
from service.loadtest.target import parse_target


def run(
    url: str,
    load: Load,
    *,
    tasks: Sequence[str],
    file: Path | None,
    backend: str | None,
    api_key_file: Path | None,
    allow_remote: bool,
    plot: Path | None,
    json_file: Path | None,
) -> bool:
    """Run a load test; return False if no request was answered.

    Raises:
        InputError: the target is not allowed or does not answer, or an option is wrong.
    """
    target = parse_target(url, allow_remote=allow_remote)
    asks = load_asks(target, tasks, file, backend, _read_key(api_key_file))
    if plot is not None:
        from q8core.bench.plot import check_plot

        check_plot(plot)
    _allow_connections(load.concurrency or load.connections)
    console = table_console()
    console.print(f"{_how(load)}, {' and '.join(tasks)}, at {url}", highlight=False, soft_wrap=True)
    try:
        record = run_load(target, asks, load)
    except OSError as error:
        raise InputError(f"nothing answers at {url}: {error.strerror or error}") from error
    summary = summarize(record, load)
    console.print(summary_table(summary), summary_lines(summary, load), highlight=False, soft_wrap=True)
    if not record.complete:
        console.print(f"stopped after {record.seconds:.1f} s; what is above was measured until then")
    if json_file is not None:
        settings = {"url": url, "tasks": list(tasks), "file": file and str(file), "backend": backend, **asdict(load)}
        report = {"settings": settings, "complete": record.complete, **asdict(summary)}
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if plot is not None and record.samples:
        from service.loadtest.plot import plot_load

        plot_load(record.samples, summary, load, f"{_how(load)}, {' and '.join(tasks)}", plot)
    return summary.from_sending.count > 0


def _how(load: Load) -> str:
    what = f"{load.rate:g} requests/s" if load.rate is not None else f"{load.concurrency} clients"
    return f"{what} for {load.duration_s:g} s after {load.warmup_s:g} s of warm-up"


def _read_key(file: Path | None) -> str | None:
    """Return the key in a file; on the command line, every user of the machine could see it."""
    if file is None:
        return None
    key = read_text(file).strip()
    if not key or not key.isascii() or not key.isprintable():
        raise InputError(f"--api-key-file {file} does not hold one line with a key")
    return key


def _allow_connections(wanted: int) -> None:
    """Raise this process's limit of open files, as far as allowed, so that the connections fit.

    Raises:
        InputError: they do not fit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + 64
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise InputError(f"{wanted} connections need more open files than the {hard} allowed here; take --connections")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
