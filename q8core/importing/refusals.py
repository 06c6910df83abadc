"""Refuses known but unsupported models by name, before any weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from q8core.checkpoint.config import CONFIG_FILE, read_config
from q8core.checkpoint.manifest import MANIFEST_FILE
from q8core.documents import read_json, shown
from q8core.errors import CheckpointError
from q8core.tokenizer_config import CONFIG_FILE as TOKENIZER_CONFIG

_ADAPTER = "adapter_config.json"


def check_supported(folder: Path) -> None:
    """Refuse a folder that cannot be converted.

    Raises:
        CheckpointError: it is an adapter, needs code of its own, is a checkpoint already, or its config describes a
            model that is not supported or that transformers does not compute.
    """
    if (folder / _ADAPTER).is_file():
        raise CheckpointError(
            f"{folder} holds an adapter ({_ADAPTER}), which is not supported; merge it into its base model first "
            "(PEFT: `model.merge_and_unload().save_pretrained(folder)`)"
        )
    if (folder / MANIFEST_FILE).is_file():
        raise CheckpointError(f"{folder} is a checkpoint of q8bert already ({MANIFEST_FILE}); all commands take it")
    for name in (CONFIG_FILE, TOKENIZER_CONFIG):
        if not (folder / name).is_file():
            continue
        values: object = read_json(folder / name, CheckpointError)
        code = cast("dict[str, object]", values).get("auto_map") if isinstance(values, dict) else None
        if code:
            raise CheckpointError(
                f"{folder / name} asks for code of the model's own (auto_map: {shown(code)}), which is never run; only "
                "what transformers itself computes can be imported"
            )
    read_config(folder).check_others_read_it(folder)
