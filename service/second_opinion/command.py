"""``q8bert compare``: compares int8 with fp32, or with another model, and chooses the threshold of a cascade."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from q8core.cli.options import JsonFile
from q8core.errors import InputError

if TYPE_CHECKING:
    from service.models.registry import ModelRegistry
    from service.second_opinion.agreement import Case
    from service.second_opinion.cascade import Calibration
    from service.second_opinion.replay import Compared


def compare(
    file: Annotated[Path, typer.Option(help="JSON Lines of bodies as POST /classify or /qa takes them.")],
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="Checkpoint folder, one per task. [default: the bundled models]")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="PATH@BACKEND: compare int8 with this checkpoint on fp32 or int8, one per task; with --cascade this "
            "is what answers again. [default: fp32 of the same checkpoint]"
        ),
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
    """Answer recorded requests on both backends, or with another model, and print how well they agree, and where not.

    The numbers are those that `q8bert serve --shadow-rate 1` shows at GET /agreement for the same requests.
    """
    if cascade is not None and target_agreement is None:
        raise InputError("--cascade needs --target-agreement: the agreement with fp32 that the threshold shall reach")
    from service.models.registry import ModelRegistry
    from service.second_opinion.replay import read_requests, replay

    registry = ModelRegistry.open(checkpoint or [], ("fp32", "int8"), kernel, threads, max_length=max_length)
    if len(registry.models) > len(registry.defaults):
        raise InputError("two checkpoints are for one task; compare one checkpoint per task")
    variants = _variants(registry, against or [])
    requests = read_requests(file, variants)
    engines = registry.load()
    for tested, reference in variants.values():
        if reference.model is not tested.model:
            engines |= registry.load_model(reference.model, backends=(reference.backend,))
    cases = list(replay(requests, engines, with_texts=texts))
    result: dict[str, Any] = {"file": file.name, "requests": len(requests), "tasks": {}}
    for task, pair in variants.items():
        cut = sum(request.tested.truncated for request in requests if request.tested.variant is pair.tested)
        own = [case for case in cases if case.task == task]
        if own:
            result["tasks"][task] = _summary(pair, own, cut, worst)
            _print_task(result["tasks"][task], task)
    if target_agreement is not None:
        result["cascade"] = _calibrate(variants, cases, target_agreement, cascade)
    if json_file:
        json_file.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _variants(registry: ModelRegistry, against: Sequence[str]) -> dict[str, Compared]:
    """Return what is compared for each task: int8 of its checkpoint with fp32, or with what `against` names.

    Raises:
        InputError: an entry is not PATH@BACKEND, is for a task without a checkpoint or with another entry, or answers
            with other labels.
        CheckpointError: a folder is missing, damaged or cannot serve.
    """
    from service.models.model import open_model
    from service.models.variant import SEPARATOR, Variant
    from service.second_opinion.compare import BACKENDS, INTEGER
    from service.second_opinion.replay import Compared

    found = {task: Compared.backends_of(model) for task, model in registry.defaults.items()}
    for given in against:
        path, _, backend = given.rpartition(SEPARATOR)
        if not path or backend not in BACKENDS:
            raise InputError(f"--against is {given!r}; expected PATH{SEPARATOR}BACKEND, such as models/sst2@fp32")
        other = open_model(Path(path), max_length=registry.max_length)
        own = registry.defaults.get(other.task)
        if own is None:
            raise InputError(f"--against {given} is for {other.task}; the checkpoints are for {', '.join(found)}")
        if found[other.task].reference.model is not own:
            raise InputError(f"two --against are for {other.task}; name one per task")
        if other.revision == own.revision and backend == INTEGER:
            raise InputError(f"--against {given} has the weights that it would be compared with")
        # checkpoints of one name are told apart by the path
        shown = given if other.name == own.name else f"{other.name}{SEPARATOR}{backend}"
        pair = Compared(Variant(own, INTEGER, f"{own.name}{SEPARATOR}{INTEGER}"), Variant(other, backend, shown))
        pair.check()
        found[other.task] = pair
    return found


def _summary(pair: Compared, cases: Sequence[Case], cut: int, worst: int) -> dict[str, Any]:
    """Return what the command says about a task."""
    from service.second_opinion.agreement import WorstCases, summarize

    found = WorstCases(worst, window=None)
    for case in cases:
        found.add(case)
    model, other = pair.tested.model, pair.reference
    return {
        "checkpoint": model.name,
        **({} if other.model is model else {"against": other.shown_as}),
        **summarize([case.comparison for case in cases]),
        "truncated": cut,
        "worst": found.describe(),
    }


def _calibrate(
    variants: Mapping[str, Compared], cases: Sequence[Case], target: float, file: Path | None
) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from service.second_opinion.cascade import calibrate, write_calibrations

    found: list[Calibration] = []
    for task, (tested, reference) in variants.items():
        own = [case for case in cases if case.task == task]
        if own:
            agree = [case.comparison.agree is True for case in own]
            second = None if reference.model is tested.model else reference
            found.append(calibrate(tested.model, [case.margin for case in own], agree, target, second))
            _print_calibration(found[-1])
    if file is not None:
        write_calibrations(file, found)
        both = "" if all(one.second is None for one in found) else ", and serve both models"
        typer.echo(f"written to {file}; serve it with: q8bert serve --cascade {file}{both}")
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
    other = summary.get("against", "fp32")
    if summary["agreed"] is None:
        return f"int8's numbers beside {other}'s on {summary['compared']} inputs"
    low, high = summary["agreement_ci95"]
    return (
        f"int8 agrees with {other} on {summary['agreed']} of {summary['compared']} inputs, {summary['agreement']:.2%} "
        f"(95 % interval {low:.2%} to {high:.2%})"
    )


def _brief(case: dict[str, Any]) -> dict[str, Any]:
    """Return a case in short, with the best answers only, for one line of the terminal."""
    best = {b: a[0] if isinstance(a, list) else a for b, a in case["answers"].items()}
    return {"agree": case["agree"], **best, **({"texts": case["texts"]} if "texts" in case else {})}


def _print_calibration(found: Calibration) -> None:
    low, _ = found.agreement_ci95
    typer.echo(
        f"{found.task} ({found.checkpoint}): threshold {found.threshold:.6f}: {found.second or 'fp32'} answers "
        f"{found.escalated:.2%} of the inputs again, agreement {found.int8_agreement:.3%} -> {found.agreement:.3%} (at "
        f"least {low:.3%} with 97.5 % confidence)"
    )
    if low < found.target_agreement:
        typer.echo(
            f"  {found.inputs} inputs are too few to be sure of {found.target_agreement:.3%} on others: "
            "give more for a safer threshold"
        )
