"""Finds the layers that quantization hurts most, by quantizing one at a time with all others in float."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from tqdm import tqdm

from q8core.arrays import Array
from q8core.engines import build_engine
from q8core.evaluate import engine_logits
from q8core.quant import Plan, Scheme, SiteScheme
from q8core.quant.plan import SitePlan
from q8core.tasks.unlabelled import UnlabelledTask

TEXTS = 64
"""Number of held-out texts that each layer is measured on."""


@dataclass(frozen=True)
class LayerError:
    """How much quantizing one layer alone changes the answers.

    Attributes:
        path: the site.
        mean_difference: as in `Agreement`, compared with the float model.
    """

    path: str
    mean_difference: float


def layer_errors(
    plan: Plan, quantized: Mapping[str, Array], floats: Mapping[str, Array], task: UnlabelledTask
) -> list[LayerError]:
    """Run the model once per quantized layer or table, with only that one quantized; return the worst first.

    Output quantizers are left out: they belong to the attention products.

    Args:
        plan: the quantized model's plan.
        quantized: the quantized model's tensors.
        floats: the float model's tensors, by the names of sites.
        task: the texts, with the float model's answers set.
    """
    limit = min(TEXTS, len(task.held_out))
    features = task.dev_features(limit)
    found: list[LayerError] = []
    sites = [site for site in plan.sites.values() if site.weight is not None]
    for site in tqdm(sites, desc="layers", unit="layer", leave=False, disable=None):
        alone = _alone(plan, site)
        inside = f"{site.path}."
        tensors = {name: (quantized if name.startswith(inside) else floats)[name] for name in alone.tensors}
        logits = engine_logits(build_engine(alone, tensors, "onednn"), features)
        found.append(LayerError(site.path, task.agreement(logits, limit).mean_difference))
    return sorted(found, key=lambda error: -error.mean_difference)


def in_float(scheme: Scheme, paths: list[str]) -> Scheme:
    """Return the scheme with these sites left in float."""
    overrides = {**scheme.overrides, **dict.fromkeys(paths, "float")}
    return replace(scheme, name=f"{scheme.name}-{len(paths)}-float", overrides=overrides)


def _alone(plan: Plan, site: SitePlan) -> Plan:
    """Return the plan with only one site's weight and input quantized."""
    assert plan.scheme is not None
    parts = {name: asdict(part) for name, part in (("weight", site.weight), ("input", site.input)) if part is not None}
    slots = {slot: SiteScheme() for slot in plan.scheme.slots}
    return Plan.of(
        plan.spec, plan.head, replace(plan.scheme, name="one-layer", slots=slots, overrides={site.path: parts})
    )
