"""Folders of float models as users have them, good and broken, each made of one tiny model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = "model.safetensors"
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Variant:
    """A change of a fine-tuned model's folder.

    Attributes:
        tensors: changes the tensors of its file.
        config: changes the values of its config.json.
        refused: a pattern of the sentence that refuses it; empty where it is the same model still.
        said: a pattern of what the log says of a model that is taken.
    """

    tensors: Callable[[Tensors], Tensors] = dict
    config: Callable[[dict[str, Any]], dict[str, Any]] = dict
    refused: str = ""
    said: str = ""


def renamed(change: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {change(name): tensor for name, tensor in tensors.items()}


def without(*starts: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith(starts)}


def added(**more: Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, **{name.replace("__", "."): tensor for name, tensor in more.items()}}


def cast(dtype: torch.dtype) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()}


def with_values(**changes: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda config: {**config, **changes}


def poisoned(value: float) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        name = "bert.encoder.layer.1.output.dense.weight"
        spoilt = tensors[name].clone()
        spoilt[1, 2] = value
        return {**tensors, name: spoilt}

    return change


def old_norms(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def inside(name: str) -> str:
    """As after torch.compile of the encoder alone."""
    return name.replace("bert.encoder.", "bert.encoder._orig_mod.")


_LAYER = "bert.encoder.layer.1."
_LORA = "bert__encoder__layer__0__attention__self__query__lora_A__default__weight"
_SWAPPED = "bert.encoder.layer.0.intermediate.dense.weight"

VARIANTS: Mapping[str, Variant] = {
    "good": Variant(),
    "compiled": Variant(renamed(lambda name: f"_orig_mod.{name}"), said="_orig_mod.bert."),
    "parallel": Variant(renamed(lambda name: f"module.{name}"), said="module.bert."),
    "both": Variant(renamed(lambda name: f"module._orig_mod.{name}"), said="module._orig_mod"),
    "lightning": Variant(renamed(lambda name: f"model.{name}"), said="model.bert."),
    "compiled inside": Variant(renamed(inside), said="_orig_mod"),
    "doubled": Variant(renamed(lambda name: name.replace("bert.", "bert.bert.", 1)), said="bert.bert."),
    "no prefix": Variant(renamed(lambda name: name.removeprefix("bert.")), said="no prefix"),
    "old norms": Variant(renamed(old_norms), said="gamma and beta"),
    "position ids": Variant(added(bert__embeddings__position_ids=torch.arange(128)[None])),
    "pretraining heads": Variant(added(cls__predictions__bias=torch.zeros(9))),
    "float16": Variant(cast(torch.float16), with_values(dtype="float16"), said="F16 are read as float32"),
    "bfloat16": Variant(cast(torch.bfloat16), with_values(dtype="bfloat16"), said="BF16 are read as float32"),
    "float64": Variant(cast(torch.float64), said="F64 are read as float32"),
    "integers": Variant(
        lambda tensors: {**tensors, _SWAPPED: tensors[_SWAPPED].to(torch.int8)},
        refused=r"intermediate\.dense\.weight is I8; allowed: F32",
    ),
    "float8": Variant(
        lambda tensors: {**tensors, _SWAPPED: tensors[_SWAPPED].to(torch.float8_e4m3fn)},
        refused=r"intermediate\.dense\.weight is F8_E4M3",
    ),
    "truncated head": Variant(without("classifier"), refused=r"it lacks classifier\.weight, classifier\.bias"),
    "no pooler": Variant(without("bert.pooler"), refused=r"it lacks bert\.pooler\.dense\.weight"),
    "one layer missing": Variant(without(_LAYER), refused=rf"it lacks {_LAYER}.*16 in all"),
    "one tensor missing": Variant(
        without(f"{_LAYER}output.LayerNorm.bias"), refused=r"lacks .*output\.LayerNorm\.bias"
    ),
    "one layer more": Variant(
        config=with_values(num_hidden_layers=1), refused=rf"it holds {_LAYER}.*which the model does not have"
    ),
    "extra tensors": Variant(
        added(dense__weight=torch.zeros(2, 2)), refused=r"it holds dense\.weight, which the model does not have"
    ),
    "another model's names": Variant(
        renamed(lambda name: name.replace("bert.", "roberta.", 1)), refused=r"it lacks bert\..*it holds roberta\."
    ),
    "two encoders": Variant(
        lambda tensors: {**tensors, **{f"model.{name}": tensor.clone() for name, tensor in tensors.items()}},
        refused=r"are both .*; a file must hold one model once",
    ),
    "half prefixed, one lost": Variant(
        lambda tensors: {f"module.{n}" if "layer.0" in n else n: t for n, t in tensors.items() if "0.output" not in n},
        refused=r"it lacks bert\.encoder\.layer\.0\.output\.dense\.weight",
    ),
    "adapters": Variant(added(**{_LORA: torch.zeros(4, 32)}), refused=r"holds adapters .*lora_A.*merge"),
    "swapped shapes": Variant(
        lambda tensors: {**tensors, _SWAPPED: tensors[_SWAPPED].T.contiguous()},
        refused=r"intermediate\.dense\.weight has shape \(32, 64\), config\.json needs \(64, 32\)",
    ),
    "wrong vocabulary": Variant(
        config=with_values(vocab_size=50), refused=r"word_embeddings\.weight has shape \(\d+, 32\), .*needs \(50, 32\)"
    ),
    "head larger than the labels": Variant(
        config=with_values(id2label={"0": "a", "1": "b", "2": "c"}),
        refused=r"classifier\.weight has shape \(2, 32\), .*\(3, 32\), which names 3 labels",
    ),
    "labels alike": Variant(config=with_values(id2label={"0": "x", "1": "x"}), refused=r"names 'x' 2 times"),
    "labels with holes": Variant(config=with_values(id2label={"0": "a", "2": "b"}), refused="keys 0, 2"),
    "NaN": Variant(poisoned(float("nan")), refused=r"layer\.1\.output\.dense\.weight holds NaN or infinite values"),
    "infinite": Variant(poisoned(float("inf")), refused="holds NaN or infinite values"),
    "no architectures": Variant(
        config=with_values(architectures=None), refused=r"architectures.* is None.*\['BertForSequenceClassification'\]"
    ),
    "no model type": Variant(config=with_values(model_type=None), refused='add "model_type": "bert"'),
    "another family": Variant(config=with_values(model_type="modernbert"), refused="'modernbert'; supported: bert"),
    "relative positions": Variant(
        config=with_values(position_embedding_type="relative_key"), refused="'relative_key'; only 'absolute'"
    ),
    "another activation": Variant(config=with_values(hidden_act="relu"), refused="'relu'; only 'gelu'"),
    "a decoder": Variant(config=with_values(is_decoder=True), refused="is_decoder is true; only false"),
    "quantized": Variant(config=with_values(quantization_config={"quant_method": "gptq"}), refused="quantized already"),
    "no layers": Variant(
        config=with_values(num_hidden_layers=0), refused="num_hidden_layers is 0; allowed: a whole number from 1"
    ),
    "no epsilon": Variant(config=with_values(layer_norm_eps=-1.0), refused="layer_norm_eps is -1.0; allowed"),
}


def make_variant(source: Path, folder: Path, name: str) -> Path:
    """Write a variant of a model's folder."""
    variant = VARIANTS[name]
    shutil.copytree(source, folder)
    save_file(variant.tensors(load_file(source / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(variant.config(config)))
    return folder
