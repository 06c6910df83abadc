"""What `test_processes` starts with torchrun: the process named by RANK trains tiny models and keeps what it got.

Arguments: a scenario, the model's folder, the folder for results.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from q8core.training import loop
from q8core.training.loop import Interrupted
from q8core.training.processes import joined_processes
from tests.training.test_loop import CONFIG, make_trainer

# Of 48 examples: batches of 7, dealt out unequally, and in each epoch one of 6; or one of 47 and one of a single row.
# At QAT's learning rate: larger steps soon carry the last bits of a gradient over a rounding of the quantizers.
UNEQUAL = replace(CONFIG, batch_size=7, dropout=0.0, evals=1, learning_rate=2e-5)
LONELY = replace(UNEQUAL, batch_size=47, epochs=5)
BEGUN = replace(UNEQUAL, max_steps=2)
STOPPED = replace(CONFIG, batch_size=5, dropout=0.1, average=0.3)
SETTINGS = {"unequal": UNEQUAL, "lonely": LONELY, "begun": BEGUN, "stopped": STOPPED}
STOP_STEP = 7


def main(scenario: str, model: Path, output: Path) -> None:
    torch.set_num_threads(1)
    loop.LOG_EVERY = 1
    with joined_processes() as processes:
        rank = processes.rank
        if scenario == "train":
            for scheme in ("fp32", "q8bert", "q8bert-paper"):
                for name in ("begun", "unequal", "lonely"):
                    train(model, output / f"{scheme}-{name}", rank, scheme, name)
            for scheme in ("fp32", "q8bert"):
                train(model, output / f"{scheme}-whole", rank, scheme, "stopped")
                train(model, output / f"{scheme}-stopped", rank, scheme, "stopped", stop=True)
        else:
            fail(model, output, rank)
    # A thread of gloo that is left frees tensors of Python while Python shuts down, which now and then aborts.
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in threads if "gloo" in name], threads


def train(model: Path, output: Path, rank: int, scheme: str, config: str, stop: bool = False) -> None:
    """Train, where wanted with SIGTERM to the second process only, then save this process's weights."""
    settings = SETTINGS[config]
    trainer = make_trainer(model, output, None if scheme == "fp32" else scheme, settings)
    features = trainer.task.train_features()
    if stop:
        calls = 0

        def terminate(*_: object) -> None:
            nonlocal calls
            calls += 1
            if calls == STOP_STEP and rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        handle = trainer.model.register_forward_hook(terminate)
        try:
            trainer.run(features)
        except Interrupted:
            (output / f"stopped-{rank}").write_text(str(calls))
        handle.remove()
        trainer = make_trainer(model, output, None if scheme == "fp32" else scheme, settings)
    trainer.run(features)
    state = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    save_file(state, output / f"rank{rank}.safetensors")


def fail(model: Path, output: Path, rank: int) -> None:
    trainer = make_trainer(model, output, "q8bert")

    def break_down(*_: object) -> None:
        if rank == 1:
            raise RuntimeError("the second process breaks down")

    trainer.model.register_forward_hook(break_down)
    trainer.run(trainer.task.train_features())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
