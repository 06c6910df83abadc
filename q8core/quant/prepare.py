"""From a float Hugging Face BERT to its fake-quantized twin, and its calibration.

float model -> ``prepare`` -> train or ``calibrate`` -> ``convert`` -> int8 tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from q8core.errors import CalibrationError, SchemeError
from q8core.quant.context import ForwardContext
from q8core.quant.layers import QATEmbedding, QATLinear, RangeName
from q8core.quant.ranges import CalibrationMethod, MseCollector, create_collector, mse_sides
from q8core.quant.scheme import ATTENTION_PRODUCTS, Scheme, SlotScheme

if TYPE_CHECKING:
    from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

    BertModelForTask = BertForSequenceClassification | BertForQuestionAnswering

_SLOT_OF_ENDING = {
    "embeddings.word_embeddings": "word_embeddings",
    "embeddings.position_embeddings": "position_embeddings",
    "embeddings.token_type_embeddings": "token_type_embeddings",
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.self": ATTENTION_PRODUCTS,
    "attention.output.dense": "attention_output",
    "intermediate.dense": "ffn_in",
    "output.dense": "ffn_out",
    "pooler.dense": "pooler",
    "classifier": "head",
    "qa_outputs": "head",
}


def slot_of(path: str) -> str:
    """Return the slot that the module at a Hugging Face BERT path fills.

    Raises:
        SchemeError: if the path belongs to no slot.
    """
    for ending, slot in _SLOT_OF_ENDING.items():  # attention.output.dense comes before output.dense
        if path == ending or path.endswith("." + ending):
            return slot
    raise SchemeError(f"{path} is in no slot of a BERT; only BERT models can be quantized")


def prepare(model: BertModelForTask, scheme: Scheme) -> BertModelForTask:
    """Replace the linears, embeddings and, by scheme, attentions of `model` by fake-quantized ones; return it.

    The model is changed in place. It keeps its class, its parameters and their names. A forward hook passes
    `attention_mask` to the observers, so that padding does not widen the ranges (`scheme.ignore_padding`).

    Raises:
        SchemeError: if the model is not a float32 BERT for one of the two tasks, is a decoder or pruned, was
            prepared before, or the scheme has an override that matches no module or does not fit where it applies.
    """
    _check_model(model)
    modules = {path: module for path, module in model.named_modules() if _has_slot(module)}
    slots = _resolved(scheme, list(modules))
    context = ForwardContext(ignore_padding=scheme.ignore_padding)
    built: dict[str, QATLinear] = {}
    for path, module in modules.items():
        slot = slots[path]
        if not slot.enabled:
            continue
        if isinstance(module, nn.Embedding):
            twin: nn.Module = QATEmbedding(module, path=path, slot=slot)
        elif isinstance(module, nn.Linear):
            owner = _input_owner(path, slot, scheme, built)
            twin = QATLinear(module, path=path, scheme=scheme, slot=slot, context=context, shares_input_of=owner)
            built[path] = twin
        else:
            twin = _attention_twin(module, path, slot, context)
        model.set_submodule(path, twin)
    model.register_forward_pre_hook(context.before, with_kwargs=True)
    model.register_forward_hook(context.after, always_call=True)
    return model


def calibrate(
    prepared: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    method: CalibrationMethod = "max",
    percentile: float = 99.99,
) -> None:
    """Set every activation range of a prepared model from `batches` of its keyword arguments.

    The model runs in float, without dropout and without gradients. Ranges that were there before are replaced.

    Args:
        prepared: a model from `prepare`.
        batches: keyword arguments of the model, such as input_ids and attention_mask, (batch, sequence).
        method: "max" clips nothing, "percentile" clips the largest magnitudes, "mse" minimises the squared error.
        percentile: share of magnitudes to cover, in percent, for the method "percentile".

    Raises:
        CalibrationError: if there is no batch, or an activation is infinite or NaN.
        InputError: if method or percentile is not allowed.
        SchemeError: if the model was not prepared.
    """
    linears, embeddings = quantized_layers(prepared)
    training = prepared.training
    prepared.eval()
    try:
        for layer in linears.values():
            layer.collectors = {name: create_collector(method, percentile) for name in layer.own_ranges}
        for table in embeddings.values():
            table.collecting = True
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
    finally:
        for layer in linears.values():
            layer.collectors = None
        for table in embeddings.values():
            table.collecting = False
        prepared.train(training)


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


def master_weights(prepared: nn.Module) -> dict[str, Tensor]:
    """Return the float parameters under their Hugging Face names, without the ranges: what a float file stores."""
    return {name: parameter.detach() for name, parameter in prepared.named_parameters()}


def _collected(layer: QATLinear) -> dict[RangeName, Tensor]:
    """Return the thresholds that the layer's collectors found."""
    collectors = layer.collectors or {}
    thresholds: dict[RangeName, Tensor] = {}
    low, high = collectors.get("input_low"), collectors.get("input_high")
    if isinstance(low, MseCollector) and isinstance(high, MseCollector):
        thresholds["input_low"], thresholds["input_high"] = mse_sides(low.histogram, high.histogram)
    thresholds |= {name: each.threshold() for name, each in collectors.items() if name not in thresholds}
    for name, threshold in thresholds.items():
        if not bool(torch.isfinite(threshold)):
            raise CalibrationError(
                f"{layer.path}: the {name.split('_')[0]} of this layer is infinite or NaN on calibration data"
            )
    return thresholds


def _has_slot(module: nn.Module) -> bool:
    from transformers.models.bert.modeling_bert import BertSelfAttention

    return isinstance(module, (nn.Linear, nn.Embedding, BertSelfAttention))


def _resolved(scheme: Scheme, paths: list[str]) -> dict[str, SlotScheme]:
    """Return the scheme of each module, checked for what belongs together."""
    slots = {path: scheme.resolve(slot_of(path), path) for path in paths}
    for glob in scheme.overrides:
        if not any(fnmatchcase(path, glob) for path in paths):
            raise SchemeError(f"override {glob!r} matches no module; paths look like {paths[0]!r}")
    for path in paths:
        if slot_of(path) == ATTENTION_PRODUCTS:
            scheme.quantizes_products(path)
    return slots


def _attention_twin(module: nn.Module, path: str, slot: SlotScheme, context: ForwardContext) -> nn.Module:
    from transformers.models.bert.modeling_bert import BertSelfAttention

    from q8core.quant.self_attention import QATSelfAttention

    assert isinstance(module, BertSelfAttention)
    return QATSelfAttention(module, path=path, slot=slot, context=context)


def _input_owner(path: str, slot: SlotScheme, scheme: Scheme, built: Mapping[str, QATLinear]) -> QATLinear | None:
    """Return the first of query, key, value of the same attention that has such an EMA input range, if shared."""
    parent, _, name = path.rpartition(".")
    if not scheme.share_qkv_input or name not in ("query", "key", "value") or slot.activation != "ema":
        return None
    for sibling in ("query", "key", "value"):
        layer = built.get(f"{parent}.{sibling}")
        if layer is not None and (layer.slot.activation, layer.slot.input_grid) == ("ema", slot.input_grid):
            return layer
    return None


def _check_model(model: nn.Module) -> None:
    # engines come by here on their way to the arithmetic, and need no model classes: seconds and torch's compiler
    from transformers import BertForQuestionAnswering, BertForSequenceClassification

    if not isinstance(model, (BertForSequenceClassification, BertForQuestionAnswering)):
        allowed = "BertForSequenceClassification or BertForQuestionAnswering"
        raise SchemeError(f"only {allowed} can be prepared, not {type(model).__name__}")
    if any(isinstance(module, (QATLinear, QATEmbedding)) for module in model.modules()):
        raise SchemeError("this model is already prepared; load the float model again to change its scheme")
    config: BertConfig = model.config
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        raise SchemeError("a decoder BERT (is_decoder or add_cross_attention) cannot be quantized; use an encoder")
    if getattr(config, "chunk_size_feed_forward", 0):
        raise SchemeError(
            f"chunk_size_feed_forward must be 0, not {config.chunk_size_feed_forward}: "
            "chunks would be observed one by one"
        )
    pruned = getattr(config, "pruned_heads", None)
    query = model.get_submodule("bert.encoder.layer.0.attention.self.query")
    if pruned or (isinstance(query, nn.Linear) and query.out_features != config.hidden_size):
        raise SchemeError("a BERT with pruned attention heads cannot be quantized; use the unpruned model")
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise SchemeError(f"weights must be float32, but {name} is {parameter.dtype}: load with dtype=float32")
