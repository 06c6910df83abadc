"""Chooses the int8 kernel: the native one where this CPU has a vector variant for the model, else the fastest as timed.

A vector variant of the native kernel is taken without timing, so that torch is not imported: wherever it was measured
(AVX2, AVX-512 VNNI, AMX) it was the fastest on short and medium batches; AVX-VNNI's variant was not measured, and is
AVX2's with fewer instructions. Elsewhere the kernels are timed on a layer of the model's own sizes. The times are
cached under a key of everything that they depend on, unless other processes disturbed them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from q8core.cache import Key, code_digest, read_record, tell_unusable, write_record
from q8core.engines.choice.int8_kernels import KERNEL_NAMES, Int8Kernel, proven_kernel
from q8core.engines.choice.speed_note import speed_note
from q8core.engines.choice.timing import ROWS, Measurement, Microseconds, measure_layer, one_layer
from q8core.errors import EngineError
from q8core.machine import cpu, usable_cpus, variables
from q8core.native import load_library
from q8core.quant.plan import Plan

How = Literal["given", "preferred", "only", "measured", "cached", "disturbed"]
"""Why a kernel is used: the user named it; it is native with a vector variant; no other works here; it was the fastest,
as timed now or by an earlier load; or it was, but others disturbed the timing, and the next load repeats it."""


@dataclass(frozen=True)
class Choice:
    """The kernel to use, and why.

    Attributes:
        kernel: the kernel, proven on this CPU.
        how: see `How`.
        microseconds: kernel -> token count -> least time of a one-layer model; empty if nothing was timed.
        refused: kernel -> why it cannot be used here.
    """

    kernel: Int8Kernel
    how: How
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
    """Return the kernel `name`, or for "auto" the one to prefer among those that work here and compute this plan.

    Args:
        name: the kernel's name, or "auto".
        plan: the model's plan.
        threads: number of threads that the model will run on; None for OpenMP's setting.

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
        if refusal is not None:
            refused[each] = refusal
        elif kernel.preferred:
            return Choice(kernel, "preferred")
        else:
            usable[each] = kernel
    if not usable:
        raise EngineError("no int8 kernel works on this machine: " + "; ".join(f"{k}: {v}" for k, v in refused.items()))
    if len(usable) == 1:
        return Choice(next(iter(usable.values())), "only", refused=refused)
    how, found = _measurement(usable, one_layer(plan), threads)
    return Choice(usable[found.quickest], how, found.microseconds, refused)


def _measurement(
    kernels: Mapping[str, Int8Kernel], plan: Plan, threads: int | None
) -> tuple[Literal["measured", "cached", "disturbed"], Measurement]:
    """Return the times of an earlier load under the same conditions, or measure them; undisturbed ones are kept."""
    key = _conditions(kernels, plan, threads)
    found = None
    try:
        kept = read_record("kernels", key)
        if kept is not None:
            times = {name: {int(rows): float(t) for rows, t in by.items()} for name, by in kept.items()}
            return "cached", Measurement(times)
        found = measure_layer(kernels, plan, threads)
        if not found.disturbed:
            record = {name: {str(rows): t for rows, t in by.items()} for name, by in found.microseconds.items()}
            write_record("kernels", key, record)
    except OSError as error:
        tell_unusable(error)
        found = found or measure_layer(kernels, plan, threads)
    return "disturbed" if found.disturbed else "measured", found


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
