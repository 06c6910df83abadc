"""Small folders in the official layouts of GLUE, header for header, for any labelled texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

# The first line of each official file, {} where it has none; dev files of MNLI have five labels, train files one.
HEADERS = {
    "cola": None,
    "mrpc": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "qnli": "index\tquestion\tsentence\tlabel",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "rte": "index\tsentence1\tsentence2\tlabel",
    "sst2": "sentence\tlabel",
    "stsb": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
    "wnli": "index\tsentence1\tsentence2\tlabel",
}
_MNLI = "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse"
_MNLI += "\tsentence2_parse\tsentence1\tsentence2"
MNLI_HEADERS = {"train.tsv": f"{_MNLI}\tlabel1\tgold_label"}
for _dev in ("dev_matched.tsv", "dev_mismatched.tsv"):
    MNLI_HEADERS[_dev] = f"{_MNLI}\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label"

# Where text, second text and label stand, counted from 0, as the data sets' own descriptions say.
PLACES = {
    "cola": (3, None, 1),
    "mrpc": (3, 4, 0),
    "qnli": (1, 2, 3),
    "qqp": (3, 4, 5),
    "rte": (1, 2, 3),
    "sst2": (0, None, 1),
    "stsb": (7, 8, 9),
    "mnli": (8, 9, -1),
    "mnli-mm": (8, 9, -1),
    "wnli": (1, 2, 3),
}
Rows = Sequence[tuple[str, str, str]]


def dev_name(task: str) -> str:
    return {"mnli": "dev_matched.tsv", "mnli-mm": "dev_mismatched.tsv"}.get(task, "dev.tsv")


def write_glue(folder: Path, task: str, rows: Rows) -> Path:
    """Write train and dev files of a task, both with these (text, second text, label)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train.tsv", dev_name(task)):
        header = MNLI_HEADERS[name] if task.startswith("mnli") else HEADERS[task]
        lines = [] if header is None else [header]
        lines += [_line(task, len(header.split("\t")) if header else 4, row) for row in rows]
        mark = "\ufeff" if task == "mrpc" else ""
        (folder / name).write_text(mark + "\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _line(task: str, width: int, row: tuple[str, str, str]) -> str:
    cells = ["7"] * width
    for place, value in zip(PLACES[task], row, strict=True):
        if place is not None:
            cells[place] = value
    return "\t".join(cells)
