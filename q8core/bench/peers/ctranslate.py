"""CTranslate2 in int8. It computes encoder and pooler, not the task's head, which is a thousandth of the work."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from q8core.bench.contender import Contender
from q8core.bench.padding import pad

if TYPE_CHECKING:
    from q8core.engines import TokenBatch
    from q8core.model.head import TaskKind

_FOLDER = "ctranslate2.int8"


class CTranslate:
    """An encoder on the CPU; it gets padded ids and the lengths, and drops the padding itself where it can."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._library: Any = importlib.import_module("ctranslate2")
        self._encoder = self._library.Encoder(
            str(folder), device="cpu", compute_type="int8", inter_threads=1, intra_threads=threads
        )

    def bind(self, batch: TokenBatch) -> Callable[[], object]:
        """Pad the batch."""
        ids = self._library.StorageView.from_array(pad(batch).input_ids.astype(np.int32))
        lengths = self._library.StorageView.from_array(np.array(batch.lengths, dtype=np.int32))
        return lambda: self._encoder.forward_batch(ids, lengths)


def prepare(folder: Path, task: TaskKind) -> None:
    """Convert the float encoder with CTranslate2's own loader, which needs a tokenizer only for its vocabulary."""
    from transformers import BertConfig, BertModel

    converters = importlib.import_module("ctranslate2.converters.transformers")
    config: Any = BertConfig.from_pretrained(folder)
    config.position_embedding_type = "absolute"  # no longer set by transformers 5
    model = BertModel.from_pretrained(folder, config=config, add_pooling_layer=True)
    loader: Any = converters.BertLoader()
    spec = loader(model, SimpleNamespace(unk_token="[UNK]", get_vocab=dict[str, int]))
    spec.validate()
    spec.optimize(quantization="int8")
    (folder / _FOLDER).mkdir()
    spec.save(str(folder / _FOLDER))


def load(folder: Path, task: TaskKind, threads: int) -> Contender:
    """Open the converted encoder."""
    return CTranslate(folder / _FOLDER, threads)
