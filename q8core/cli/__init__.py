"""The command line: each command in its own module, composed here.

A command imports its code when it runs: torch and transformers take seconds to import, for which neither ``--help`` nor
another command, such as ``serve``, should wait.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer

from q8core.cli.bench import bench
from q8core.cli.evaluate import evaluate
from q8core.cli.export import export
from q8core.cli.import_model import import_
from q8core.cli.info import info
from q8core.cli.quantize import quantize
from q8core.cli.reproduce import reproduce
from q8core.cli.sensitivity import sensitivity
from q8core.cli.train import train

app = typer.Typer(
    name="q8bert",
    help="BERT on CPUs in 8 bits: train with quantization, run on int8 kernels, serve and compare.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would read [default: 1] as markup and drop it
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"q8bert {version('q8bert')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Handle the options that belong to no command."""


def add_commands(*commands: Callable[..., None]) -> None:
    """Add commands to the app; the list of commands shows the whole first line of each docstring."""
    for command in commands:
        name = command.__name__.rstrip("_").replace("_", "-")  # `import` is a Python keyword
        app.command(name, short_help=(command.__doc__ or "").partition("\n")[0])(command)


add_commands(import_, train, quantize, sensitivity, evaluate, reproduce, bench, info, export)
