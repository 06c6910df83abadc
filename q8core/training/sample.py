"""Some of a task's training examples, drawn with a seed, for what is measured on them before or beside training."""

from __future__ import annotations

import torch

from q8core.errors import InputError
from q8core.tasks.task import Task


def sample(task: Task, count: int, seed: int) -> Task:
    """Return the task with ``count`` of its training examples, drawn with a seed.

    Raises:
        InputError: there is no training data.
    """
    examples = list(task.train_examples)
    if not examples:
        raise InputError("ranges and importance are measured on training data, and there is none")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(examples), generator=generator)[:count].tolist()
    return task.with_train([examples[i] for i in order])
