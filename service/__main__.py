"""The ``q8bert`` command: all commands, and expected errors as one sentence with an exit code."""

from __future__ import annotations

import sys

import typer

from q8core.cli import add_commands, app
from q8core.errors import Q8Error
from q8core.waiting import spin_briefly
from service.cli import serve
from service.loadtest.command import loadtest
from service.operations.key_command import hash_key
from service.second_opinion.command import compare

add_commands(serve, compare, loadtest, hash_key)


def main() -> None:
    """Run the command line."""
    spin_briefly()
    try:
        app()
    except Q8Error as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
