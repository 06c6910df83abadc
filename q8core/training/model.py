"""Pretrained and fine-tuned Hugging Face BERTs as starting points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoConfig, BertConfig, PretrainedConfig
from transformers.utils import logging as hf_logging

from q8core.errors import InputError
from q8core.tasks.examples import is_regression
from q8core.tasks.task import TaskKind
from q8core.training.attention import ATTENTION
from q8core.training.head import HEAD_CLASSES, BertModel, check_outputs, put_in_order


def bert_config(source: str) -> BertConfig:
    """The config of a folder or hub id.

    Raises:
        InputError: not there, or not a BERT.
    """
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise InputError(f"no model at {source!r}: {str(error).splitlines()[0]}") from error
    if not isinstance(config, BertConfig):
        raise InputError(f"{source!r} is a {config.model_type!r} model; only 'bert' is supported")
    return config


def load_bert(source: str, kind: TaskKind, labels: tuple[str, ...] = (), dropout: float = 0.0) -> BertModel:
    """Load a BERT with the task's head, which starts at random where the source has none.

    A head for the same classes in another order is put into that of `labels`.

    Args:
        source: a folder in Hugging Face's layout (safetensors) or a hub id.
        kind: which head.
        labels: class names, for classification; a single one makes a regression, with the mean squared error as loss.
        dropout: for hidden states and attention.

    Raises:
        InputError: not there, not a BERT, without safetensors weights, or with a head for other labels.
    """
    config = bert_config(source)
    if kind == "classify" and labels:
        check_outputs(source, config, len(labels))
    changes: dict[str, Any] = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    if kind == "classify" and labels:
        changes["id2label"] = dict(enumerate(labels))
        changes["label2id"] = {label: i for i, label in enumerate(labels)}
        if is_regression(labels):
            changes["problem_type"] = "regression"
        elif config.problem_type == "regression":  # what the source was made for, not this task
            changes["problem_type"] = "single_label_classification"
    # in bf16 training on CPUs it is faster than torch's fused attention, at every length up to 384
    changes["attn_implementation"] = ATTENTION
    model_class = HEAD_CLASSES[kind]
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # a new head is expected, not worth a table of warnings
    hf_logging.disable_progress_bar()
    try:
        model = model_class.from_pretrained(source, use_safetensors=True, **changes)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{source!r} cannot be loaded as {model_class.__name__}: {error}") from error
    finally:
        hf_logging.set_verbosity(level)
    put_in_order(model, config, labels)
    return model


def model_folder(source: str) -> Path:
    """The folder of a local model, or the snapshot of a hub id (for its tokenizer files)."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.txt", "model.safetensors"]))
    except Exception as error:  # the hub client raises many kinds; all mean: not to be had
        raise InputError(f"{source!r} is neither a folder nor reachable on the hub: {error}") from error
