"""The GLUE tasks in their official files (Wang et al. 2018): a table of layouts, labels and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from q8core.errors import InputError
from q8core.tasks.columns import Columns
from q8core.tasks.examples import REGRESSION_LABELS, ClassifyData, TextExample, official_file
from q8core.tasks.labels import official_classes
from q8core.tasks.tabular import TableRow, label_examples, read_table, score_examples

_TRUTH = {"entailment": "entailment", "not_entailment": "not_entailment"}
_TRUTH_3 = {"entailment": "entailment", "neutral": "neutral", "contradiction": "contradiction"}
_MNLI = Columns("sentence1", "sentence2", "gold_label")
# A few of the 400,000 rows in QQP's official files are broken by line breaks in their questions; the usual counts
# (363,846 training pairs) leave them out. A file with 1 % of such rows is damaged, or not QQP's.
_QQP_SHORT_ROWS = 0.01
# STS-B's scale of similarity.
_LOWEST, _HIGHEST = 0.0, 5.0


@dataclass(frozen=True)
class GlueTask:
    """One task: the columns of its texts and labels, and its metrics.

    Attributes:
        columns: the columns to read.
        labels: label as written -> its name, in the order of Hugging Face's ``glue`` data set; empty for regression.
        metrics: names in :data:`q8core.tasks.metrics.METRICS`; the first chooses the best weights.
        dev: the file to score on.
    """

    columns: Columns
    labels: Mapping[str, str]
    metrics: tuple[str, ...] = ("accuracy",)
    dev: str = "dev.tsv"


GLUE: dict[str, GlueTask] = {
    "cola": GlueTask(
        Columns("sentence", header=("source", "label", "mark", "sentence")),
        {"0": "unacceptable", "1": "acceptable"},
        ("mcc",),
    ),
    "mrpc": GlueTask(
        Columns("#1 String", "#2 String", "Quality"),
        {"0": "not_equivalent", "1": "equivalent"},
        ("f1", "accuracy"),
    ),
    "qnli": GlueTask(Columns("question", "sentence"), _TRUTH),
    "qqp": GlueTask(
        # QQP has empty questions.
        Columns("question1", "question2", "is_duplicate", empty_texts=True, short_rows=_QQP_SHORT_ROWS),
        {"0": "not_duplicate", "1": "duplicate"},
        ("f1", "accuracy"),
    ),
    "rte": GlueTask(Columns("sentence1", "sentence2"), _TRUTH),
    "sst2": GlueTask(Columns("sentence"), {"0": "negative", "1": "positive"}),
    "stsb": GlueTask(Columns("sentence1", "sentence2", "score"), {}, ("pearson", "spearman")),
    "mnli": GlueTask(_MNLI, _TRUTH_3, dev="dev_matched.tsv"),
    "mnli-mm": GlueTask(_MNLI, _TRUTH_3, dev="dev_mismatched.tsv"),
    "wnli": GlueTask(Columns("sentence1", "sentence2"), {"0": "not_entailment", "1": "entailment"}),
}


def read_glue(
    name: str,
    folder: Path,
    with_train: bool = True,
    outputs: Sequence[str] = (),
    asked: Sequence[str] | None = None,
) -> ClassifyData:
    """Read a task's folder: its dev file and, if wanted, ``train.tsv``; both may be compressed (``.gz``).

    Args:
        name: the task's name.
        folder: the folder of its files.
        with_train: whether to read the training data.
        outputs: the model's labels by index; empty for a model without a head.
        asked: the task's labels in the order of the outputs, from ``--labels``.

    Raises:
        InputError: a file is missing or not in the task's layout (names file and line), or ``asked`` does not fit
            (see :func:`official_classes`).
    """
    task = GLUE[name]
    if asked is not None and not task.labels:
        raise InputError(f"--labels is for classes; {name} predicts a number")
    classes = official_classes(tuple(task.labels.values()), outputs, asked) if task.labels else None
    paths = [official_file(folder, file) for file in (("train.tsv", task.dev) if with_train else (task.dev,))]
    columns = replace(task.columns, raw_quotes=True)
    parts = [_examples(path, read_table(path, columns), task) for path in paths]
    train, dev = parts[0] if with_train else (), parts[-1]
    if classes is None:
        return ClassifyData(REGRESSION_LABELS, train, dev)
    return ClassifyData(classes.names, train, dev, classes.numbers, classes.outputs)


def _examples(path: Path, rows: Sequence[TableRow], task: GlueTask) -> tuple[TextExample, ...]:
    if task.labels:
        written = {label: i for i, label in enumerate(task.labels)}
        return label_examples(path, rows, tuple(written), written.get)
    return score_examples(path, rows, _LOWEST, _HIGHEST)
