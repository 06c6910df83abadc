"""``q8bert compare``: compares int8 with fp32 on recorded requests, and chooses the threshold of a cascade."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from q8core.cli.options import JsonFile
from q8core.errors import InputError

if TYPE_CHECKING:
    from service.models.registry import ModelRegistry
    from service.second_opinion.agreement import Case
    from service.second_opinion.cascade import Calibration


def compare(
    file: Annotated[Path, typer.Option(help="JSON Lines of bodies as POST /classify or /qa takes them.")],
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="Checkpoint folder, one per task. [default: the bundled models]")
    ] = None,
    kernel: Annotated[str, typer.Option(help="int8 kernel: native, onednn, fbgemm, or auto for the fastest.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads. [default: as many as serve would use]")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of the longest input, as of serve. [default: as each checkpoint says]")
    ] = None,
    worst: Annotated[int, typer.Option(min=0, help="How many of the worst cases of each task to show.")] = 5,
    texts: Annotated[bool, typer.Option("--texts", help="Show the texts of the worst cases, too.")] = False,
    target_agreement: Annotated[
        float | None,
        typer.Option(help="Find the smallest threshold with which backend=auto agrees so often, such as 0.999."),
    ] = None,
    cascade: Annotated[
        Path | None, typer.Option(help="Write that threshold to this file, for serve --cascade.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Answer recorded requests on both backends and print how well they agree, and where they do not.

    The numbers are those that `q8bert serve --shadow-rate 1` shows at GET /agreement for the same requests.
    """
    if cascade is not None and target_agreement is None:
        raise InputError("--cascade needs --target-agreement: the agreement with fp32 that the threshold shall reach")
    from service.models.registry import ModelRegistry
    from service.second_opinion.agreement import WorstCases, summarize
    from service.second_opinion.replay import read_requests, replay

    registry = ModelRegistry.open(checkpoint or [], ("fp32", "int8"), kernel, threads, max_length=max_length)
    if len(registry.models) > len(registry.defaults):
        raise InputError("two checkpoints are for one task; compare one checkpoint per task")
    requests = read_requests(file, registry.defaults)
    cases = list(replay(requests, registry.load(), with_texts=texts))
    result: dict[str, Any] = {"file": file.name, "requests": len(requests), "tasks": {}}
    for task, model in registry.defaults.items():
        own = [case for case in cases if case.task == task]
        if own:
            found = WorstCases(worst, window=None)
            for case in own:
                found.add(case)
            summary = summarize([case.comparison for case in own])
            cut = sum(request.truncated for request in requests if request.model is model)
            result["tasks"][task] = {"checkpoint": model.name, **summary, "truncated": cut, "worst": found.describe()}
            _print_task(result["tasks"][task], task)
    if target_agreement is not None:
        result["cascade"] = _calibrate(registry, cases, target_agreement, cascade)
    if json_file:
        json_file.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _calibrate(
    registry: ModelRegistry, cases: Sequence[Case], target: float, file: Path | None
) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from service.second_opinion.cascade import calibrate, write_calibrations

    found: list[Calibration] = []
    for task, model in registry.defaults.items():
        own = [case for case in cases if case.task == task]
        if own:
            agree = [case.comparison.agree is True for case in own]
            found.append(calibrate(model, [case.margin for case in own], agree, target))
            _print_calibration(found[-1])
    if file is not None:
        write_calibrations(file, found)
        typer.echo(f"written to {file}; serve it with: q8bert serve --cascade {file}")
    return [asdict(one) for one in found]


def _print_task(summary: dict[str, Any], task: str) -> None:
    typer.echo(f"{task} ({summary['checkpoint']}): " + _agreement(summary))
    if summary["truncated"]:
        typer.echo(f"  {summary['truncated']} inputs were cut (--max-length; of questions those over 64 tokens)")
    for name, title in (("abs_diff", "score difference"), ("span_f1", "F1 of the spans")):
        if name in summary:
            typer.echo(f"  {title}: " + ", ".join(f"{key} {value:.5f}" for key, value in summary[name].items()))
    for case in summary["worst"]:
        typer.echo(f"  {case['request_id']}, input {case['input']}: " + json.dumps(_brief(case), ensure_ascii=False))


def _agreement(summary: dict[str, Any]) -> str:
    if summary["agreed"] is None:
        return f"int8's numbers beside fp32's on {summary['compared']} inputs"
    low, high = summary["agreement_ci95"]
    return (
        f"int8 agrees with fp32 on {summary['agreed']} of {summary['compared']} inputs, {summary['agreement']:.2%} "
        f"(95 % interval {low:.2%} to {high:.2%})"
    )


def _brief(case: dict[str, Any]) -> dict[str, Any]:
    """Return a case in short, with the best answers only, for one line of the terminal."""
    best = {b: a[0] if isinstance(a, list) else a for b, a in case["answers"].items()}
    return {"agree": case["agree"], **best, **({"texts": case["texts"]} if "texts" in case else {})}


def _print_calibration(found: Calibration) -> None:
    low, _ = found.agreement_ci95
    typer.echo(
        f"{found.task} ({found.checkpoint}): threshold {found.threshold:.6f}: fp32 answers {found.escalated:.2%} of "
        f"the inputs again, agreement {found.int8_agreement:.3%} -> {found.agreement:.3%} (at least {low:.3%} with "
        "97.5 % confidence)"
    )
    if low < found.target_agreement:
        typer.echo(
            f"  {found.inputs} inputs are too few to be sure of {found.target_agreement:.3%} on others: "
            "give more for a safer threshold"
        )
