from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from q8core.quant.rules.ranges import largest_of_processes, sum_of_processes

WORKER = """
import sys
import torch
from torch import distributed, nn
from q8core.errors import CalibrationError
from q8core.model.sites import Site
from q8core.quant import SiteScheme, preset
from q8core.quant.qat.layers import QATLinear
from q8core.quant.qat.context import ForwardContext
from q8core.quant.plan import SitePlan
from q8core.quant.quantizer import PER_CHANNEL, STATIC, Quantizer

rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
context = ForwardContext(ignore_padding=True)
plan = SitePlan(Site("layer", "layer", "linear", (2, 4)), SiteScheme(weight=PER_CHANNEL, input=STATIC))
layer = QATLinear(nn.Linear(4, 2), plan=plan, scheme=preset("q8bert"), context=context)
layer.train()
for step in range(3):
    layer(torch.full((1, 4), float(10 * step + rank + 1)))
print(float(layer.get_buffer("input_threshold")))
for culprit in range(2):
    try:
        layer(torch.full((1, 4), float("nan") if rank == culprit else 1.0))
    except CalibrationError as error:
        print(error)
least = SiteScheme(weight=PER_CHANNEL, input=Quantizer(bits=4, rule="mse"))
plan = SitePlan(Site("layer", "layer", "linear", (2, 4)), least)
layer = QATLinear(nn.Linear(4, 2), plan=plan, scheme=preset("q8bert"), context=context).train()
layer.get_buffer("input_threshold").fill_(10.0)
layer.observed_steps.fill_(1)
layer(torch.full((1, 4), 3.0 * (rank + 1)))
print(float(layer.get_buffer("input_threshold")))
distributed.destroy_process_group()
"""


def test_processes_share_their_ranges(tmp_path: Path) -> None:
    """In the original each process kept its own statistics, and only the first one's were saved."""
    command = [sys.executable, "-c", WORKER]
    workers = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "rendezvous")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        printed = [worker.communicate(timeout=270)[0].splitlines() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    assert [worker.returncode for worker in workers] == [0, 0]
    # the second process saw 2, 12, 22: decays 2/11 and 3/12 after the first
    second = 2 + (12 - 2) * (1 - 2 / 11)
    expected = second + (22 - second) * (1 - 3 / 12)
    assert printed[0] == printed[1]
    assert abs(float(printed[0][0]) - expected) < 1e-4
    # a NaN that only one of them met: both end, none waits for the other
    assert printed[0][1:3] == 2 * ["layer: the input of this layer is infinite or NaN at step 3"]
    # steps of 10 / 7 make 2 of the first one's 3 and 4 of the other's 6: the best step is (3 * 2 + 6 * 4) / (4 + 16)
    best = 7 * 1.5
    assert abs(float(printed[0][3]) - (10 + (1 - 2 / 11) * (best - 10))) < 1e-4


def test_one_process_keeps_its_value() -> None:
    value = torch.tensor(3.0)
    assert largest_of_processes(value) is value
    assert sum_of_processes(value) is value
