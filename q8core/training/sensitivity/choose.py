"""A scheme that leaves its bits to the model gets them: measured on training examples, before training starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from q8core.quant import Scheme
from q8core.tasks.task import Task
from q8core.training.processes import current_processes
from q8core.training.sensitivity.measure import Effort, measure
from q8core.training.sensitivity.record import STATE_FILE
from q8core.training.sensitivity.report import Wanted, allocate, quantizer_of

_EFFORT = Effort(subsets=0)
"""As the command's, without the eigenvalues, which a budget does not ask for."""


def choose_bits(scheme: Scheme, source: str, task: Task, folder: Path) -> tuple[Scheme, dict[str, Any]]:
    """Return the scheme with the bits of each matrix as overrides, and the record of the choice.

    One that chooses nothing is returned as it is, with an empty record. Of several processes the first one measures.

    Args:
        scheme: the scheme.
        source: the fine-tuned float model that training starts from, a folder or hub id.
        task: its task, with training examples.
        folder: where samples are kept, so that an interrupted measurement goes on.

    Raises:
        CheckpointError: the model has no head for the task yet.
        InputError: the model has other labels, or the folder has samples of another model.
    """
    if scheme.average_bits is None:
        return scheme, {}
    folder.mkdir(parents=True, exist_ok=True)
    processes = current_processes()
    if not processes.is_first:
        processes.wait()
    network, measured = measure(source, task, _EFFORT, folder / STATE_FILE)
    if processes.is_first:
        processes.wait()
    found = allocate(network, measured, Wanted(scheme.average_bits, base=scheme.name))
    chosen = {path: {"weight": quantizer_of(bits)} for path, bits in found.bits.items()}
    uniform, uniform_cost = found.uniform()
    record = {
        "average_bits": round(found.average, 3),
        "loss_increase": found.cost,
        "uniform": {"bits": uniform, "loss_increase": uniform_cost},
        "examples": measured.identity["examples"],
        "probes": measured.probes,
    }
    return replace(scheme, average_bits=None, overrides={**scheme.overrides, **chosen}), {"chosen_bits": record}


def discard_samples(folder: Path) -> None:
    """Remove the samples, which only an unfinished run needs."""
    (folder / STATE_FILE).unlink(missing_ok=True)
