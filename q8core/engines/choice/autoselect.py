"""Chooses the int8 kernel by timing those that work on this CPU, on a layer of the model's own sizes.

The times are cached under a key of everything that they depend on; later loads read them instead of measuring.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import numpy as np

from q8core.cache import Key, code_digest, read_record, tell_unusable, write_record
from q8core.engines.choice.int8_kernels import KERNEL_NAMES, Int8Kernel, proven_kernel
from q8core.engines.choice.random_weights import RandomInt8
from q8core.engines.choice.speed_note import speed_note
from q8core.engines.packing import TokenBatch
from q8core.engines.tensors.source import TensorSource
from q8core.errors import EngineError
from q8core.machine import cpu, usable_cpus, variables
from q8core.model.head import HeadSpec
from q8core.model.sites import HEAD_OUTPUT, LAYER_LINEARS, PRODUCTS
from q8core.native import load_library
from q8core.quant import Scheme
from q8core.quant.plan import Plan

ROWS = (16, 128)
"""Token counts to time: a short sentence and a small batch."""

Microseconds = dict[str, dict[int, float]]
"""Kernel -> token count -> median time."""

_ROUNDS = 5
_BUDGET_SECONDS = 1.5


@dataclass(frozen=True)
class Choice:
    """The kernel to use, and why.

    Attributes:
        kernel: the kernel, proven on this CPU.
        how: given by the user, the only usable one, measured now, or measured by an earlier load (cached).
        microseconds: kernel -> token count -> median time of a one-layer model; empty if there was no choice.
        refused: kernel -> why it cannot be used here.
    """

    kernel: Int8Kernel
    how: Literal["given", "only", "measured", "cached"]
    microseconds: Microseconds = field(default_factory=dict[str, dict[int, float]])
    refused: dict[str, str] = field(default_factory=dict[str, str])

    def facts(self) -> dict[str, object]:
        """Return the choice as plain values for `describe`."""
        return {
            **self.kernel.facts,
            "kernel_choice": self.how,
            "speed_note": speed_note(self.kernel.name, str(self.kernel.facts["isa"]), cpu()[1]),
            "kernel_microseconds": {k: {str(rows): t for rows, t in v.items()} for k, v in self.microseconds.items()},
            "kernels_refused": self.refused,
        }


def choose_kernel(name: str, plan: Plan, threads: int | None = None) -> Choice:
    """Return the kernel `name`, or for "auto" the fastest one that works here and computes this plan.

    Args:
        name: the kernel's name, or "auto".
        plan: the model's plan.
        threads: number of threads that the model will run on; None for torch's setting.

    Raises:
        EngineError: if the kernel, or for "auto" every kernel, cannot be used; says why.
    """
    sizes = {columns for _, columns in plan.spec.linear_shapes}
    if name != "auto":
        return Choice(proven_kernel(name, sizes), "given")
    usable: dict[str, Int8Kernel] = {}
    refused: dict[str, str] = {}
    for each in KERNEL_NAMES:
        try:
            kernel = proven_kernel(each, sizes)
        except (EngineError, RuntimeError, AttributeError) as error:  # this build of torch lacks an operator
            refused[each] = str(error)
            continue
        refusal = kernel.refused(plan)
        if refusal is None:
            usable[each] = kernel
        else:
            refused[each] = refusal
    if not usable:
        raise EngineError("no int8 kernel works on this machine: " + "; ".join(f"{k}: {v}" for k, v in refused.items()))
    if len(usable) == 1:
        return Choice(next(iter(usable.values())), "only", refused=refused)
    how, times = _times(usable, one_layer(plan), threads)
    best = min(usable, key=lambda each: math.prod(times[each].values()))
    return Choice(usable[best], how, times, refused)


def one_layer(plan: Plan) -> Plan:
    """Return the plan of a model with the first layer of `plan` only, and small tables."""
    assert plan.scheme is not None
    spec = replace(plan.spec, layers=1, vocabulary=16, positions=max(ROWS))
    slots = {slot: plan.of_layer(0, slot).scheme for slot in (*LAYER_LINEARS, PRODUCTS)}
    slots["head_output"] = plan.sites[HEAD_OUTPUT].scheme
    scheme = Scheme("layer", {**plan.scheme.slots, **slots})
    return Plan.of(spec, HeadSpec("every", 2), scheme)


def _times(
    kernels: Mapping[str, Int8Kernel], plan: Plan, threads: int | None
) -> tuple[Literal["measured", "cached"], Microseconds]:
    """Return the times of an earlier load under the same conditions, or measure them and store them for later loads."""
    key = _conditions(kernels, plan, threads)
    try:
        kept = read_record("kernels", key)
        if kept is not None:
            return "cached", {name: {int(rows): float(t) for rows, t in by.items()} for name, by in kept.items()}
        times = measure_layer(kernels, plan, threads)
        write_record("kernels", key, {name: {str(rows): t for rows, t in by.items()} for name, by in times.items()})
    except OSError as error:
        tell_unusable(error)
        times = measure_layer(kernels, plan, threads)
    return "measured", times


def _conditions(kernels: Mapping[str, Int8Kernel], plan: Plan, threads: int | None) -> Key:
    """Return everything that the times depend on."""
    import torch  # imported already: of two usable kernels, at least one is torch's

    name, flags = cpu()
    return {
        "cpu": name,
        "flags": sorted(flags),
        "cpus": usable_cpus(),
        "threads": threads or torch.get_num_threads(),
        "variables": variables(),
        "torch": torch.__version__,
        "library": load_library().q8_digest().decode() if "native" in kernels else None,
        "code": code_digest(),
        "kernels": {each: kernel.facts for each, kernel in kernels.items()},
        "spec": asdict(plan.spec),
        "layer": {path: asdict(site.scheme) for path, site in plan.sites.items()},
        "rows": list(ROWS),
    }


def measure_layer(kernels: Mapping[str, Int8Kernel], plan: Plan, threads: int | None = None) -> Microseconds:
    """Return kernel -> tokens -> median microseconds of a one-layer model; the kernels take turns."""
    models = {name: kernel.load(plan, TensorSource(RandomInt8(plan))) for name, kernel in kernels.items()}
    times: dict[str, dict[int, list[float]]] = {name: {rows: [] for rows in ROWS} for name in kernels}
    deadline = time.monotonic() + _BUDGET_SECONDS
    zeros = np.zeros(max(ROWS), np.int64)
    batches = {rows: TokenBatch(zeros[:rows], zeros[:rows], (rows,)) for rows in ROWS}
    for turn in range(1 + _ROUNDS):  # the first turn warms up
        for rows, batch in batches.items():
            for name, model in models.items():
                begin = time.perf_counter()
                model.logits(batch, threads)
                if turn:
                    times[name][rows].append((time.perf_counter() - begin) * 1e6)
        if turn and time.monotonic() > deadline:
            break
    return {name: {rows: round(sorted(t)[len(t) // 2], 1) for rows, t in by.items()} for name, by in times.items()}
