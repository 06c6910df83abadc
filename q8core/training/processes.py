"""The processes that train one model together, as `torchrun` starts them, and the device of each.

Data parallel: every process has the whole model and takes its rows of each global batch, and gradients are summed over
all, so that a step equals that of one process with the whole batch. Ranges are shared when they are observed
(`q8core.quant.rules.ranges.largest_of_processes`).
"""

from __future__ import annotations

import os
import random
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module

import torch
from torch import Tensor, distributed, nn

from q8core.errors import InputError

# The first process evaluates and publishes alone, for as long as that takes. A dead process is noticed without a time
# limit: by its closed connection (gloo), and by torchrun, which stops the others.
PATIENCE = timedelta(days=7)
_FIRST = 0
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Processes:
    """This process among those that train together; methods that exchange data wait for all processes.

    Args:
        rank: number of this process.
        size: number of processes.
        device: the device of this process.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = _CPU

    @property
    def is_first(self) -> bool:
        """Whether this process evaluates, logs and writes files; the others only compute."""
        return self.rank == _FIRST

    def check_batch(self, batch_size: int) -> None:
        """Refuse a global batch that would leave processes without work.

        Raises:
            InputError: it has fewer rows than there are processes.
        """
        if batch_size < self.size:
            raise InputError(f"batch_size is {batch_size}, too small for {self.size} processes: it is for all together")

    def share(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], float]:
        """Return this process's rows of a global batch, on its device, and their share of all rows.

        The means over the rows, multiplied by these shares, add up to the mean over the global batch. The rows keep the
        global padding, so that ranges which count padding do not depend on the process. Rows are dealt out in turn,
        because neighbours have similar lengths. A process without rows computes the first row with share 0: it takes
        part in all exchanges and changes no result.
        """
        rows = len(next(iter(batch.values())))
        count = len(range(self.rank, rows, self.size))
        chosen = slice(self.rank, rows, self.size) if count else slice(0, 1)
        mine = {name: value[chosen].to(self.device) for name, value in batch.items()}
        return mine, count / rows

    def seed(self, seed: int, step: int) -> None:
        """Seed the random numbers of a step: different in each process, and the same if the step is repeated."""
        torch.manual_seed(random.Random(f"{seed}/{step}/{self.rank}").getrandbits(63))

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace the gradients by their sums over all processes."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def total(self, value: float) -> float:
        """Return the sum of a value over all processes."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.all_reduce(shared)
        return shared.item()

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return self.total(float(flag)) > 0

    def start_alike(self, model: nn.Module, step: int) -> None:
        """Copy the first process's weights and ranges to all processes before 0-based step `step`.

        Raises:
            InputError: they resume at different steps, because not all see the first one's output folder.
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
        """Return when all processes have called this."""
        self.total(0.0)


ALONE = Processes()
"""One process, on the CPU."""


def current_processes() -> Processes:
    """Return this process, alone or as set up by `joined_processes`; on a GPU if there is one."""
    joined = distributed.is_available() and distributed.is_initialized()
    rank, size = (distributed.get_rank(), distributed.get_world_size()) if joined else (0, 1)
    return Processes(rank, size, _device())


@contextmanager
def joined_processes() -> Generator[Processes]:
    """Join the processes that torchrun started, if any, and leave when all have finished.

    Raises:
        InputError: there are more processes than GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield current_processes()
        return
    # Its functions have the group as default argument: imported later, by the first optimizer, it would keep the group
    # beyond `destroy_process_group`, and gloo's threads would free Python's tensors while Python shuts down and abort.
    import_module("torch.distributed.nn")

    device = _device()
    on_gpu = device.type == "cuda"
    backend, bound = ("nccl", device) if on_gpu else ("gloo", None)
    distributed.init_process_group(backend, timeout=PATIENCE, device_id=bound)
    processes = current_processes()
    yield processes
    # Not after an error, which must end this process without waiting for the others.
    processes.wait()
    distributed.destroy_process_group()


def _device() -> torch.device:
    """Return the GPU of this process (torchrun numbers a machine's processes), or the CPU."""
    if not torch.cuda.is_available():
        return _CPU
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= count:
        raise InputError(f"process {number} of this machine has no GPU: there are {count}; lower --nproc-per-node")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)
