"""The processes that train one model together, as `torchrun` starts them, and the device of each.

Data parallel: every process holds the whole model, takes its rows of each global batch, and all sum their gradients,
so that a step is that of one process with the whole batch. Ranges are shared where they are observed
(`q8core.quant.rules.ranges.largest_of_processes`).
"""

from __future__ import annotations

import os
import random
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

from q8core.errors import InputError

# The first process evaluates and publishes alone, for as long as that takes. A process that died is noticed without a
# clock: by its closed connection (gloo), and by torchrun, which ends the others.
PATIENCE = timedelta(days=7)
_FIRST = 0
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Processes:
    """This process's place among those of a training; what exchanges something waits for all of them.

    Args:
        rank: number of this process.
        size: how many there are.
        device: where this one computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = _CPU

    @property
    def is_first(self) -> bool:
        """Whether this process evaluates, logs and writes files; the others only compute."""
        return self.rank == _FIRST

    def check_batch(self, batch_size: int) -> None:
        """Refuse a global batch that leaves processes without work.

        Raises:
            InputError: it has fewer rows than there are processes.
        """
        if batch_size < self.size:
            raise InputError(f"batch_size is {batch_size}, too small for {self.size} processes: it is for all together")

    def share(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], float]:
        """Return this process's rows of a global batch, on its device, and their share of all rows.

        A mean over the rows, multiplied by this share, sums up to the mean over the global batch. The rows keep the
        global padding, so that ranges which count padding do not depend on who computes. Rows are dealt out in turn,
        because neighbours have similar lengths. A process for which none is left computes the first row again, with
        share 0: it takes part in all exchanges and changes no result.
        """
        rows = len(next(iter(batch.values())))
        count = len(range(self.rank, rows, self.size))
        chosen = slice(self.rank, rows, self.size) if count else slice(0, 1)
        mine = {name: value[chosen].to(self.device) for name, value in batch.items()}
        return mine, count / rows

    def seed(self, seed: int, step: int) -> None:
        """Start the random stream of a step: a process's own, and the same whenever the step is repeated."""
        torch.manual_seed(random.Random(f"{seed}/{step}/{self.rank}").getrandbits(63))

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace the parameters' gradients by their sums over all processes."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def total(self, value: float) -> float:
        """Return the sum of all processes' values."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.all_reduce(shared)
        return shared.item()

    def any(self, flag: bool) -> bool:
        """Whether any process's flag is set."""
        return self.total(float(flag)) > 0

    def start_alike(self, model: nn.Module, step: int) -> None:
        """Give all processes the first one's weights and ranges before 0-based step `step`.

        Raises:
            InputError: they resume at different steps, since not all see the first one's output folder.
        """
        if self.size == 1:
            return
        first = torch.tensor(step, device=self.device)
        distributed.broadcast(first, _FIRST)
        if self.any(int(first) != step):
            raise InputError(
                f"process {self.rank} resumes at step {step}, the first one at {int(first)}; "
                "all processes need the same output folder"
            )
        for tensor in (*model.parameters(), *model.buffers()):
            distributed.broadcast(tensor.detach(), _FIRST)

    def wait(self) -> None:
        """Go on when all processes have come here."""
        self.total(0.0)


ALONE = Processes()
"""One process, on the CPU."""


def current_processes() -> Processes:
    """This process's place: alone, or as `joined_processes` has set it; on a GPU where there is one."""
    joined = distributed.is_available() and distributed.is_initialized()
    rank, size = (distributed.get_rank(), distributed.get_world_size()) if joined else (0, 1)
    return Processes(rank, size, _device())


@contextmanager
def joined_processes() -> Generator[Processes]:
    """Join the processes that torchrun started, if it did, and leave when all have finished.

    Raises:
        InputError: there are more processes than GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield current_processes()
        return
    device = _device()
    on_gpu = device.type == "cuda"
    backend, bound = ("nccl", device) if on_gpu else ("gloo", None)
    distributed.init_process_group(backend, timeout=PATIENCE, device_id=bound)
    processes = current_processes()
    yield processes
    # Not after an error, which has to end this process and not to wait for the others.
    processes.wait()
    distributed.destroy_process_group()


def _device() -> torch.device:
    """The GPU of this process (torchrun numbers a machine's processes), the CPU where there is none."""
    if not torch.cuda.is_available():
        return _CPU
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= count:
        raise InputError(f"process {number} of this machine has no GPU: there are {count}; lower --nproc-per-node")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)
