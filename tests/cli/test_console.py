from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from q8core.cli import console as module
from q8core.cli.console import table_console


def wide_table() -> Table:
    table = Table(*(f"a column of width {n}" for n in range(5)))
    table.add_row(*("x" * 20 for _ in range(5)))
    return table


def test_no_column_of_a_table_in_a_file_is_cut(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    table_console().print(wide_table())
    assert capsys.readouterr().out.count("x" * 20) == 5


@pytest.mark.parametrize("columns", ["60", None])
def test_a_width_that_is_known_is_kept(monkeypatch: pytest.MonkeyPatch, columns: str | None) -> None:
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    else:
        monkeypatch.delenv("COLUMNS", raising=False)
        monkeypatch.setattr(module, "Console", lambda: Console(file=io.StringIO(), force_terminal=True, width=60))
    assert table_console().width == 60
