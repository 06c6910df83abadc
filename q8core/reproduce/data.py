"""The official files of each task below one folder, and facts about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from q8core.errors import InputError
from q8core.tasks.digest import examples_digest
from q8core.tasks.glue import GLUE
from q8core.tasks.task import Task, read_task

TITLES = {
    "cola": "CoLA",
    "mrpc": "MRPC",
    "rte": "RTE",
    "stsb": "STS-B",
    "sst2": "SST-2",
    "qqp": "QQP",
    "qnli": "QNLI",
    "squad": "SQuAD v1.1",
    "mnli": "MNLI",
    "mnli-mm": "MNLI-mm",
    "wnli": "WNLI",
}
"""The usual names of the tasks."""

OFFICIAL = {
    "cola": (8551, 1043),
    "mrpc": (3668, 408),
    "rte": (2490, 277),
    "stsb": (5749, 1500),
    "sst2": (67349, 872),
    "qqp": (363846, 40430),
    "qnli": (104743, 5463),
    "squad": (87599, 10570),
    "mnli": (392702, 9815),
    "mnli-mm": (392702, 9832),
    "wnli": (635, 71),
}
"""Numbers of training and dev examples of the public data sets."""

_FOLDERS = {"mnli-mm": "mnli"}


@dataclass(frozen=True)
class DataFacts:
    """Facts about a task's files.

    Attributes:
        train: number of training examples.
        dev: number of dev examples.
        sha256: digest of all examples, independent of their files.
        characters: characters of all training and dev texts, to estimate times.
    """

    train: int
    dev: int
    sha256: str
    characters: tuple[int, int]


def find_folder(root: Path, task: str) -> Path:
    """Return the folder of a task below `root` or `root/glue`, under GLUE's name (SST-2) or ours (sst2).

    Raises:
        InputError: there is no such folder, or several.
    """
    wanted = _plain(_FOLDERS.get(task, task))
    parents = [root, *(child for child in _folders(root) if _plain(child.name) == "glue")]
    found = [child for parent in parents for child in _folders(parent) if _plain(child.name) == wanted]
    if len(found) > 1:
        raise InputError(f"--data {root} has several folders for {task}: {', '.join(map(str, found))}")
    if not found:
        title = "squad" if task == "squad" else TITLES[_FOLDERS.get(task, task)]
        raise InputError(f"--data {root} has no folder {title}, nor {Path('glue') / title}, for {task}")
    return found[0]


@dataclass(frozen=True)
class DataSource:
    """The files of all tasks, and the base model that reads them.

    Attributes:
        root: folder with the tasks' folders.
        tokenizer: the base model's.
        positions: the longest input that it can take.
    """

    root: Path
    tokenizer: Tokenizer
    positions: int

    def read(self, task: str) -> Task:
        """Read and check a task's files, with the task's usual input length or as many tokens as the positions allow.

        Raises:
            InputError: a file is wrong; names file and line.
        """
        return read_task(task, find_folder(self.root, task), self.tokenizer, None, self.positions, with_train=True)

    def facts(self, tasks: Sequence[str]) -> dict[str, DataFacts]:
        """Read all tasks' files, one after another, and keep only the facts about them.

        Raises:
            InputError: files are missing or wrong; names all such tasks, not only the first.
        """
        found: dict[str, DataFacts] = {}
        wrong: list[str] = []
        for name in tasks:
            try:
                found[name] = _facts(self.read(name))
            except InputError as error:
                wrong.append(str(error))
        if wrong:
            raise InputError("; ".join(wrong))
        return found


def check_tasks(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names without duplicates.

    Raises:
        InputError: an unknown task, or no task at all.
    """
    allowed = (*GLUE, "squad")
    for name in names:
        if name not in allowed:
            raise InputError(f"--tasks names {name!r}; allowed: {', '.join(allowed)}")
    if not names:
        raise InputError(f"--tasks names no task; allowed: {', '.join(allowed)}")
    return tuple(dict.fromkeys(names))


def _facts(task: Task) -> DataFacts:
    train, dev = task.train_examples, task.dev_examples
    characters = tuple(sum(len(repr(example)) for example in examples) for examples in (train, dev))
    return DataFacts(len(train), len(dev), examples_digest(train, dev), (characters[0], characters[1]))


def _folders(parent: Path) -> list[Path]:
    return sorted(child for child in parent.iterdir() if child.is_dir()) if parent.is_dir() else []


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
