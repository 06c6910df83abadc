"""What ``--help`` shows of what the options say of themselves."""

from __future__ import annotations

import pytest
import typer

from q8core.cli import app
from tests.cli.test_startup import COMMANDS


def unwrapped(text: str) -> str:
    """Without the spaces and line ends, which depend on the terminal."""
    return "".join(text.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_text_is_shown_to_the_letter(run, command: str) -> None:
    code, out, err = run(command, "--help")
    assert code == 0, err
    shown = unwrapped(out)
    group = typer.main.get_command(app)
    assert set(group.commands) == set(COMMANDS)
    for parameter in group.commands[command].params:
        assert parameter.help, parameter.name
        assert unwrapped(parameter.help) in shown
    assert "\\" not in out


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("serve", "[env: Q8BERT_PORT] [default: 8000]"),
        ("serve", "[env: Q8BERT_BACKENDS] [default: fp32,int8]"),
        ("bench", "[default: 1x32 1x128 8x128 1x384; with --training 32x32 16x192]"),
        ("bench", "pip install 'q8bert[peers]' first"),
        ("train", "Weight of its hidden states. [default: the recipe's]"),
    ],
)
def test_brackets_are_text_and_no_markup(run, command: str, words: str) -> None:
    assert unwrapped(words) in unwrapped(run(command, "--help")[1])


def test_the_list_of_commands_has_each_ones_first_line_uncut(run) -> None:
    shown = unwrapped(run("--help")[1])
    for name, command in typer.main.get_command(app).commands.items():
        summary = command.callback.__doc__.splitlines()[0]
        assert unwrapped(f"{name} {summary}") in shown
