"""Makes a float network fake-quantized, and calibrates it.

network, plan -> ``prepare`` -> train or ``calibrate`` -> ``convert`` -> the tensors of the plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from q8core.errors import CalibrationError, SchemeError
from q8core.model.attention import AttentionProducts
from q8core.model.network import Network
from q8core.model.sites import PROJECTIONS, float_shapes
from q8core.quant.plan import Plan, SitePlan
from q8core.quant.qat.attention import QATAttentionProducts
from q8core.quant.qat.context import ForwardContext
from q8core.quant.qat.embedding import QATEmbedding
from q8core.quant.qat.layers import QATLinear, RangeName
from q8core.quant.qat.smoothing import smoothing_factors
from q8core.quant.rules.ranges import (
    CalibrationMethod,
    MseCollector,
    RangeCollector,
    create_collector,
    mse_sides,
)
from q8core.quant.schemes import Scheme


def prepare(network: Network, plan: Plan) -> Network:
    """Replace the modules that `plan` quantizes by fake-quantized ones; return the network.

    The network is changed in place, and keeps its parameters and their names. A forward hook passes `attention_mask`
    to the observers, so that padding does not widen the ranges (`scheme.ignore_padding`).

    Raises:
        SchemeError: if the plan is for another model or has no scheme, the network was prepared before, or its weights
            are not float32.
    """
    scheme = plan.scheme
    if scheme is None:
        raise SchemeError("this plan quantizes nothing: it has no scheme")
    _check_network(network, plan)
    context = ForwardContext(ignore_padding=scheme.ignore_padding)
    built: dict[str, QATLinear] = {}
    for path, site in plan.sites.items():
        if not site.scheme.quantizes:
            continue
        module = network.get_submodule(path)
        if isinstance(module, nn.Embedding):
            twin: nn.Module = QATEmbedding(module, plan=site)
        elif isinstance(module, nn.Linear):
            owner = _input_owner(site, scheme, built)
            twin = QATLinear(module, plan=site, scheme=scheme, context=context, shares_input_of=owner)
            built[path] = twin
        else:
            assert isinstance(module, AttentionProducts)
            query, key, value = (built[_sibling(path, slot)] for slot in PROJECTIONS)
            twin = QATAttentionProducts(module, plan=site, projections=(query, key, value))
        network.set_submodule(path, twin)
    network.register_forward_pre_hook(context.before, with_kwargs=True)
    network.register_forward_hook(context.after, always_call=True)
    return network


def calibrate(
    prepared: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    method: CalibrationMethod = "max",
    percentile: float = 99.99,
) -> None:
    """Set the smoothing of inputs and every activation range of a prepared model from `batches` of its arguments.

    The model runs in float, without dropout and without gradients. Existing ranges are replaced.

    Args:
        prepared: a model from `prepare`.
        batches: keyword arguments of the model, such as input_ids and attention_mask, (batch, sequence).
        method: "max" clips nothing, "percentile" clips the largest magnitudes, "mse" minimises the squared error, which
            is what inputs of rule "mse" or with learned steps have in any case.
        percentile: share of magnitudes to cover, in percent, for the method "percentile".

    Raises:
        CalibrationError: if there is no batch, or an activation is infinite or NaN.
        InputError: if method or percentile is not allowed.
        SchemeError: if the model was not prepared.
    """
    linears, embeddings = quantized_layers(prepared)
    smoothed = [layer for layer in linears.values() if layer.plan.smooths and layer.input_owner is layer]
    batches = list(batches) if smoothed else batches  # they are run twice
    training = prepared.training
    prepared.eval()
    try:
        for table in embeddings.values():
            table.collecting = True
        if smoothed:
            _smooth(prepared, smoothed, batches)
        for layer in linears.values():
            layer.collectors = {name: _collector(layer, name, method, percentile) for name in layer.own_ranges}
        count = 0
        with torch.no_grad():
            for batch in batches:
                prepared(**batch)
                count += 1
        if count == 0:
            raise CalibrationError("calibration needs at least one batch of examples; there was none")
        found = {path: _collected(layer) for path, layer in linears.items()}
        for path, thresholds in found.items():
            for name, threshold in thresholds.items():
                linears[path].get_buffer(f"{name}_threshold").copy_(threshold)
            linears[path].observed_steps.fill_(count)
            linears[path].start_steps()
    finally:
        for layer in linears.values():
            layer.collectors = layer.columns = None
        for table in embeddings.values():
            table.collecting = False
        prepared.train(training)


def _smooth(prepared: nn.Module, owners: Sequence[QATLinear], batches: Iterable[Mapping[str, Tensor]]) -> None:
    """Set the smoothing of inputs, each from the weights of all layers that read it."""
    linears = quantized_layers(prepared)[0].values()
    for layer in linears:
        layer.columns = torch.zeros(layer.in_features)
    with torch.no_grad():
        for batch in batches:
            prepared(**batch)
    for owner in owners:
        assert owner.columns is not None
        assert owner.plan.input is not None
        if not bool(torch.isfinite(owner.columns).all()):
            raise CalibrationError(f"{owner.path}: the input of this layer is infinite or NaN on calibration data")
        readers = [layer.weight for layer in linears if layer.input_owner is owner]
        factors = smoothing_factors(owner.columns, readers, owner.plan.input.smoothing)
        owner.get_buffer("input_smoothing").copy_(factors)
    for layer in linears:
        layer.columns = None


def quantized_layers(prepared: nn.Module) -> tuple[dict[str, QATLinear], dict[str, QATEmbedding]]:
    """Return the fake-quantized layers of a prepared model by module path.

    Raises:
        SchemeError: if there are none.
    """
    linears = {path: module for path, module in prepared.named_modules() if isinstance(module, QATLinear)}
    tables = {path: module for path, module in prepared.named_modules() if isinstance(module, QATEmbedding)}
    if not linears and not tables:
        raise SchemeError(f"this {type(prepared).__name__} has no quantized layer; call prepare(model, scheme) first")
    return linears, tables


def learned_steps(prepared: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that are no weights but logarithms of steps."""
    return frozenset(name for name, _ in prepared.named_parameters() if name.endswith("log_step"))


def master_weights(prepared: nn.Module) -> dict[str, Tensor]:
    """Return the float parameters by the names of sites, without steps and ranges: what a float file stores."""
    steps = learned_steps(prepared)
    return {name: parameter.detach() for name, parameter in prepared.named_parameters() if name not in steps}


def _collector(layer: QATLinear, name: RangeName, method: CalibrationMethod, percentile: float) -> RangeCollector:
    read = layer.plan.input
    if name == "output" or read is None:
        return create_collector(method, percentile)
    return create_collector(method if read.rule == "ema" else "mse", percentile, read.bits)


def _collected(layer: QATLinear) -> dict[RangeName, Tensor]:
    """Return the thresholds that the layer's collectors found."""
    collectors = layer.collectors or {}
    thresholds: dict[RangeName, Tensor] = {}
    low, high = collectors.get("input_low"), collectors.get("input_high")
    if isinstance(low, MseCollector) and isinstance(high, MseCollector):
        assert layer.plan.input is not None
        ends = mse_sides(low.histogram, high.histogram, layer.plan.input.bits)
        thresholds["input_low"], thresholds["input_high"] = ends
    thresholds |= {name: each.threshold() for name, each in collectors.items() if name not in thresholds}
    for name, threshold in thresholds.items():
        if not bool(torch.isfinite(threshold)):
            raise CalibrationError(
                f"{layer.path}: the {name.split('_')[0]} of this layer is infinite or NaN on calibration data"
            )
    return thresholds


def _input_owner(site: SitePlan, scheme: Scheme, built: Mapping[str, QATLinear]) -> QATLinear | None:
    """Return the first of the layer's query, key and value with the same kind of static input range, if shared."""
    if not scheme.share_qkv_input or site.site.slot not in PROJECTIONS or site.kind != "static":
        return None
    for slot in PROJECTIONS:
        layer = built.get(_sibling(site.path, slot))
        if layer is not None and layer.plan.input == site.input:
            return layer
    return None


def _sibling(path: str, slot: str) -> str:
    """Return the path of another site of the same layer."""
    return f"{path.rpartition('.')[0]}.{slot}"


def _check_network(network: Network, plan: Plan) -> None:
    if any(isinstance(module, (QATLinear, QATEmbedding)) for module in network.modules()):
        raise SchemeError("this network is already prepared; load the float model again to change its scheme")
    found = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    if found != float_shapes(plan.spec, plan.head):
        raise SchemeError("the plan is that of another network: its tensors or their shapes differ")
    for name, parameter in network.named_parameters():
        if parameter.dtype != torch.float32:
            raise SchemeError(f"weights must be float32, but {name} is {parameter.dtype}")
