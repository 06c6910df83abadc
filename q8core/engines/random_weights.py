"""Random weights of any shape, made when asked for: for measuring kernels.

Speed and memory do not depend on what the weights are, so nothing has to be downloaded. Scales are of the size that
trained models have, so that integers use their range and no value is denormal.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from transformers import BertConfig

from q8core.checkpoint.layout import embedding_shapes, linear_shapes, norm_names
from q8core.tasks.task import TaskKind

LABELS = 2
_WEIGHT_STD = 0.02  # BERT's initialisation, and about what training leaves
_UNIFORM_STD = 127 / 3**0.5  # of integers spread evenly over +-127
_WEIGHT_SCALE = _WEIGHT_STD / _UNIFORM_STD
_INPUT_SCALE, _INPUT_ZERO_POINT, _QKV_SCALE = 10 / 255, 128, 4 / 127


class _Made(Mapping[str, Tensor]):
    """Tensors that are made anew, and alike, on each access."""

    def __init__(self, makers: dict[str, Callable[[torch.Generator], Tensor]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> Tensor:
        make = self._makers[name]
        return make(torch.Generator().manual_seed(zlib.crc32(name.encode())))

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


class RandomInt8(_Made):
    """The tensors of a random int8 checkpoint in the `q8bert` scheme, or in `q8bert-attention`."""

    def __init__(self, config: BertConfig, task: TaskKind = "classify", *, quantized_products: bool = False) -> None:
        makers: dict[str, Callable[[torch.Generator], Tensor]] = _norms(config)
        requantized = (".query", ".key", ".value") if quantized_products else (".query", ".key")
        for path, (rows, columns) in embedding_shapes(config).items():
            if path.endswith("token_type_embeddings"):
                makers[f"{path}.weight"] = _normal(rows, columns)
            else:
                makers[f"{path}.weight"] = _integers(rows, columns)
                makers[f"{path}.weight_scale"] = _constant(_WEIGHT_SCALE, rows)
        for path, (out, columns) in linear_shapes(config, task, LABELS).items():
            makers[f"{path}.weight"] = _integers(out, columns)
            makers[f"{path}.weight_scale"] = _constant(_WEIGHT_SCALE, out)
            makers[f"{path}.input_scale"] = _constant(_INPUT_SCALE, 1)
            makers[f"{path}.input_zero_point"] = _constant(_INPUT_ZERO_POINT, 1)
            makers[f"{path}.bias"] = _biases(out)
            if path.endswith(requantized):
                makers[f"{path}.output_scale"] = _constant(_QKV_SCALE, 1)
        super().__init__(makers)


class RandomFloat(_Made):
    """The tensors of a random float checkpoint under Hugging Face's names."""

    def __init__(self, config: BertConfig, task: TaskKind = "classify") -> None:
        makers = _norms(config)
        for path, shape in {**embedding_shapes(config), **linear_shapes(config, task, LABELS)}.items():
            makers[f"{path}.weight"] = _normal(*shape)
        for path, (out, _) in linear_shapes(config, task, LABELS).items():
            makers[f"{path}.bias"] = _constant(0.01, out)
        super().__init__(makers)


def _norms(config: BertConfig) -> dict[str, Callable[[torch.Generator], Tensor]]:
    makers: dict[str, Callable[[torch.Generator], Tensor]] = {}
    for path in norm_names(config):
        makers[f"{path}.weight"] = _constant(1.0, int(config.hidden_size))
        makers[f"{path}.bias"] = _constant(0.0, int(config.hidden_size))
    return makers


def _constant(value: float, size: int) -> Callable[[torch.Generator], Tensor]:
    dtype = torch.int32 if isinstance(value, int) else torch.float32
    return lambda _: torch.full((size,), value, dtype=dtype)


def _normal(rows: int, columns: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randn(rows, columns, generator=generator) * _WEIGHT_STD


def _integers(rows: int, columns: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randint(-127, 128, (rows, columns), dtype=torch.int8, generator=generator)


def _biases(size: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randint(-20000, 20000, (size,), dtype=torch.int32, generator=generator)
