"""How large checkpoints of BERT-base's shape are, against the count of its weights times their bits."""

from __future__ import annotations

import math

import pytest

from q8core.bench.models import bench_config
from q8core.quant import Plan, preset

BYTES = {"F32": 4, "I32": 4, "I8": 1, "U8": 1}
LAYERS, WIDTH, INNER = 12, 768, 3072
ENCODER = LAYERS * (4 * WIDTH**2 + 2 * WIDTH * INNER)
WORDS = 30522 * WIDTH
OTHERS = 512 * WIDTH + WIDTH**2
"""Positions and pooler, in int8."""
ROWS = LAYERS * (5 * WIDTH + INNER)
"""Outputs of the encoder's layers: each has a scale and a bias of four bytes."""
REST = OTHERS + 8 * ROWS + 4 * (30522 + 512) + 4 * LAYERS * 4 * WIDTH


@pytest.mark.parametrize(
    ("name", "encoder_bits", "table_bits"),
    [
        ("q8bert", 8, 8),
        ("qbert-4", 4, 8),
        ("qbert-3", 3, 8),
        ("qbert-2", 2, 8),
        ("kdlsq-4", 4, 4),
        ("kdlsq-2", 2, 2),
        ("ternary", 2, 2),
        ("binary", 1, 1),
        ("qbert-mp", 3, 8),
        ("mkq", 6, 8),
    ],
)
def test_bert_base_is_as_small_as_its_bits_say(name: str, encoder_bits: int, table_bits: int) -> None:
    config = bench_config("bert-base")
    plan = Plan.of(config.spec, config.head("classify"), preset(name))
    stored = sum(BYTES[tensor.dtype] * math.prod(tensor.shape) for tensor in plan.tensors.values())
    assert stored == pytest.approx(ENCODER * encoder_bits / 8 + WORDS * table_bits / 8 + REST, rel=0.01)
