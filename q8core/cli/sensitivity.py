"""``q8bert sensitivity``: how much the loss depends on each matrix, and the bits that each gets for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from q8core.cli.data import OWN_FILES, DataOptions, text_model
from q8core.cli.options import (
    DataFolder,
    JsonFile,
    LabelColumn,
    Labels,
    PairColumn,
    TaskName,
    TextColumn,
    TrainFile,
    TrainingLength,
)
from q8core.errors import InputError

if TYPE_CHECKING:
    from q8core.tasks.task import Task
    from q8core.training.sensitivity.report import Method, Sensitivity


def sensitivity(
    task: TaskName,
    model: Annotated[str, typer.Option(help="Fine-tuned float model: a folder or a hub id.")],
    output: Annotated[
        Path, typer.Option(help="Scheme file to write, .toml; what is measured stays beside it for the next command.")
    ],
    average_bits: Annotated[float, typer.Option(help="Most bits of the encoder's weights on average, 2 to 8.")] = 4.0,
    allocation: Annotated[
        str,
        typer.Option(
            help="budget: 2, 3, 4 or 8 bits a matrix by the loss they cost. rank: two numbers of bits by layer, the "
            "higher for the half with the larger eigenvalues (Q-BERT)."
        ),
    ] = "budget",
    reverse: Annotated[
        bool, typer.Option("--reverse", help="As a control, give the sensitive ones fewer bits.")
    ] = False,
    scheme: Annotated[str, typer.Option(help="Preset that the scheme file changes.")] = "q8bert",
    data: DataFolder = None,
    train_file: TrainFile = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    labels: Labels = None,
    max_length: TrainingLength = None,
    loss: Annotated[
        str,
        typer.Option(
            help="Loss to measure: answers, divergence from the model's own answers; labels, the task's (Q-BERT)."
        ),
    ] = "answers",
    examples: Annotated[int, typer.Option(min=1, help="Training examples to measure on.")] = 128,
    probes: Annotated[int, typer.Option(min=4, help="Most random vectors for a batch of 8 examples, on average.")] = 30,
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Standard error of the largest trace, as a share of it, that is enough.")
    ] = 0.1,
    subsets: Annotated[
        int, typer.Option(min=0, help="Random subsets for the layers' top eigenvalues; 0 leaves these out.")
    ] = 3,
    seed: Annotated[int, typer.Option(help="Which examples, and all random vectors.")] = 42,
    json_file: JsonFile = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw the result into this PNG: pip install 'q8bert[plot]' first.")
    ] = None,
) -> None:
    """Measure how sensitive each matrix of a fine-tuned model is, and write bits for each as a scheme file.

    After Ctrl-C the same command goes on. Another budget, --allocation or --reverse measures nothing again, if its
    --output is in the same folder.
    """
    from q8core.bench.plot import check_plot
    from q8core.training.sensitivity.measure import Effort, measure
    from q8core.training.sensitivity.plot import plot_sensitivity
    from q8core.training.sensitivity.record import STATE_FILE
    from q8core.training.sensitivity.report import Wanted, allocate, check_wanted, scheme_text

    wanted = Wanted(average_bits, cast("Method", allocation), reverse, scheme)
    check_wanted(wanted, subsets)
    if loss not in ("answers", "labels"):
        raise InputError(f"--loss is {loss!r}; allowed: answers, labels")
    effort = Effort(examples, loss, seed, probes, tolerance, subsets)
    _check_output(output)
    if plot is not None:
        check_plot(plot)
    if task == OWN_FILES and train_file is None:
        raise InputError("--task classify needs --train-file")
    # only training examples count: they stand in for the dev set, which the readers of own files ask for
    options = DataOptions(
        task, data, train_file, train_file, text_column, pair_column, label_column, max_length, labels
    )
    work = _read(model, options)
    output.parent.mkdir(parents=True, exist_ok=True)
    network, measured = measure(model, work, effort, output.parent / STATE_FILE)
    found = allocate(network, measured, wanted)
    output.write_text(scheme_text(found), encoding="utf-8")
    if json_file is not None:
        json_file.write_text(json.dumps(found.describe(), indent=1) + "\n", encoding="utf-8")
    if plot is not None:
        plot_sensitivity(found, plot)
    _show(found, output)


def _check_output(output: Path) -> None:
    """Refuse a file that `--scheme` would not read."""
    from q8core.quant import PRESETS

    if output.suffix != ".toml":
        raise InputError(f"--output {output}: the scheme is TOML; name a file that ends in .toml")
    if output.stem in PRESETS:
        raise InputError(f"--output {output}: {output.stem} is the name of a preset; choose another")


def _read(model: str, options: DataOptions) -> Task:
    """Read the data for a model that has a head for it."""
    from q8core.training.model import check_inputs, find_source

    source = find_source(model)
    source.require_head(options.kind)
    work = options.read(text_model(source, options.kind, None), with_train=True)
    check_inputs(source, work)
    return work


def _show(found: Sensitivity, output: Path) -> None:
    """Print a row for each layer, then what was measured, and what the bits cost."""
    from rich.table import Table

    from q8core.cli.console import table_console
    from q8core.model.sites import LAYER_LINEARS

    table = Table("layer", *(("omega",) if found.omegas else ()), *LAYER_LINEARS, title="bits (Hessian trace)")
    for number, layer in enumerate(found.layers()):
        omega = [f"{found.omegas[number]:.3g}"] if found.omegas else []
        table.add_row(str(number), *omega, *(f"{found.bits[one.path]} ({one.trace:.3g})" for one in layer))
    console = table_console()
    console.print(table)
    measured, (uniform, cost) = found.measured, found.uniform()
    typer.echo(
        f"{measured.identity['examples']} examples, {measured.probes} probes, {measured.seconds:.0f} s: "
        f"the standard error of the largest trace is {measured.relative_error:.1%}"
    )
    typer.echo(
        f"{output}: {found.average:.2f} bits on average; loss + {found.cost:.3g} in second order, with {uniform} bits "
        f"everywhere + {cost:.3g}"
    )
