"""SST-2 in GLUE's layout: ``train.tsv`` and ``dev.tsv`` with the columns ``sentence`` and ``label`` (0, 1)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from q8core.tasks.examples import ClassifyData
from q8core.tasks.tabular import Columns, read_classify

LABELS = ("negative", "positive")


def read_sst2(folder: Path, with_train: bool = True) -> ClassifyData:
    """Read the folder; the numeric labels 0 and 1 get the names negative and positive."""
    train = folder / "train.tsv" if with_train else None
    data = read_classify(train, folder / "dev.tsv", Columns(text="sentence"), labels=("0", "1"))
    return replace(data, labels=LABELS)
