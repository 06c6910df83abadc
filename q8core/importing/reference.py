"""Transformers' own model of a folder, the reference for an imported one."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
)
from transformers.utils import logging as hf_logging

from q8core.errors import CheckpointError

_HEADS: tuple[Any, ...] = (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
)


@contextmanager
def quiet_transformers() -> Generator[None]:
    """Suppress transformers' tables of tensors and progress bars; what matters in them is checked here."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def read_theirs(folder: Path) -> Any:
    """Return a folder's config as transformers reads it.

    Raises:
        CheckpointError: transformers cannot read it.
    """
    try:
        return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder}: transformers cannot read the config: {reason}") from error


def encoder_class(config_class: Any) -> Any:
    """Return transformers' class of a model without a head."""
    classes: Any = MODEL_MAPPING
    return classes[config_class]


def declared_class(config: Any) -> Any:
    """Return transformers' class for the head that `architectures` declares.

    Raises:
        CheckpointError: it is none of the known kinds of head.
    """
    for classes in _HEADS:
        found = classes.get(type(config), None)
        if found is not None and found.__name__ in (config.architectures or ()):
            return found
    raise CheckpointError(f"architectures is {config.architectures}; none of transformers' classes computes its head")


def load_reference(original: Path, written: Path, config: Any, model_class: Any) -> tuple[Any, str]:
    """Load transformers' model of the original folder, and compare the written one with it tensor by tensor.

    Args:
        original: the folder with the weights under their original names.
        written: the folder with the imported weights.
        config: the model's config.
        model_class: transformers' class for it.

    Returns:
        The model, in float32, and a phrase for what it was loaded from: the written tensors if transformers does not
        know the original's names.

    Raises:
        CheckpointError: transformers cannot load the written folder, or finds other values in it.
    """
    ours, lacks = _load(model_class, written, config)
    theirs, missing = _load(model_class, original, config)
    if missing != lacks:
        return ours, "the tensors under the model's names, because transformers does not know those that they had"
    found: dict[str, Tensor] = theirs.state_dict()
    values: dict[str, Tensor] = ours.state_dict()
    for name, value in found.items():
        if name not in lacks and not torch.equal(value, values[name]):
            raise CheckpointError(f"{written}: {name} has other values than transformers reads in {original}")
    return theirs, "the original weights"


def _load(model_class: Any, folder: Path, config: Any) -> tuple[Any, set[str]]:
    """Return a folder's model in float32, and the names of the tensors that the folder lacks."""
    try:
        with quiet_transformers():
            model, report = model_class.from_pretrained(
                str(folder),
                config=deepcopy(config),
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as error:  # transformers raises many kinds
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder}: transformers cannot load the model: {reason}") from error
    return model.eval(), set(report["missing_keys"])
