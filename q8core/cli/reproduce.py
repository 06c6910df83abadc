"""``q8bert reproduce``: the paper's table from your own base model and data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from q8core.cli.before_training import prepare_training
from q8core.cli.options import RecipeFolder
from q8core.errors import InputError

PAPER_TASKS = "cola,mrpc,rte,stsb,sst2,qqp,qnli,squad"


def reproduce(
    model: Annotated[str, typer.Option(help="Pretrained BERT: a folder or a hub id.")],
    data: Annotated[Path, typer.Option(help="Folder with the tasks' folders: SST-2, glue/SST-2, squad, ...")],
    output: Annotated[Path, typer.Option(help="Folder for runs, table.md and results.json; what is finished stays.")],
    tasks: Annotated[str, typer.Option(help="Names with commas.")] = PAPER_TASKS,
    seeds: Annotated[int | None, typer.Option(help="Runs a task. [default: as its recipe says]")] = None,
    scheme: Annotated[
        str | None, typer.Option(help="Of QAT: q8bert, q8bert-attention or q8bert-paper. [default: q8bert]")
    ] = None,
    schemes: Annotated[
        str | None,
        typer.Option(help="Compare these schemes instead, presets or files with commas: schemes.md, bits to speed."),
    ] = None,
    recipes: RecipeFolder = None,
    keep_float: Annotated[
        bool, typer.Option("--keep-float", help="Finished runs keep their float weights too, not only int8.")
    ] = False,
    plot: Annotated[bool, typer.Option(help="Also draw a picture: pip install 'q8bert[plot]' first.")] = True,
) -> None:
    """Fine-tune, quantize in every way and train with quantization, over tasks and seeds, into one table.

    After Ctrl-C the same command goes on, and repeats nothing that is finished.
    """
    from q8core.reproduce.planned import Order
    from q8core.reproduce.plot import check_plot
    from q8core.reproduce.series import reproduce

    if plot:
        check_plot()
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file; name a folder")
    if scheme is not None and schemes is not None:
        raise InputError("--scheme is of the paper's table, --schemes compares schemes instead: name one of them")
    wanted = () if schemes is None else _names(schemes)
    if schemes is not None and not wanted:
        raise InputError("--schemes names no scheme")
    order = Order(model, data, _names(tasks), output, seeds, scheme or "q8bert", wanted, recipes, keep_float, plot)
    prepare_training(quantized=True)
    complete = reproduce(order, lambda line: typer.echo(line))
    typer.echo(f"{output / ('schemes.md' if wanted else 'table.md')}")
    if not complete:
        typer.echo("some runs failed: see the end of the table", err=True)
        raise typer.Exit(1)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
