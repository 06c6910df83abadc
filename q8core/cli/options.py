"""The options that several commands have: the same name, type and help in each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from q8core.tasks.glue import GLUE

TASK_NAMES = f"{', '.join(GLUE)}, squad, or classify for your own files"
TaskName = Annotated[str, typer.Option(help=f"{TASK_NAMES}.")]
DataFolder = Annotated[Path | None, typer.Option(help="Folder with the task's official files.")]
TrainFile = Annotated[Path | None, typer.Option(help="Your own training data: .csv, .tsv or .jsonl.")]
DevFile = Annotated[Path | None, typer.Option(help="Your own data to score on, same format.")]
TextColumn = Annotated[str | None, typer.Option(help="Column of the text. [default: text]")]
PairColumn = Annotated[str | None, typer.Option(help="Column of a second text, for pairs.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the label. [default: label]")]
Labels = Annotated[
    str | None,
    typer.Option(
        help="The data's labels in the order of the model's outputs, with commas; needed only where names do not say "
        "which is which."
    ),
]
TrainingLength = Annotated[int | None, typer.Option(help="Longest input in tokens. [default: 128; squad 384]")]
MaxLength = Annotated[
    int | None, typer.Option(help="Longest input in tokens. [default: the model's own; squad 384 or less]")
]
Int8Only = Annotated[bool, typer.Option(help="Leave the float weights out of the int8 checkpoint.")]
RecipeFolder = Annotated[
    Path | None,
    typer.Option("--recipes", help="Your own recipes, TASK.toml; other tasks keep those of q8core/training/recipes."),
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the result to this file.")]
