"""The bits of a model as its engines, files and tables name them."""

from __future__ import annotations

from pathlib import Path

import pytest

from q8core.checkpoint.config import read_config
from q8core.engines import build_engine
from q8core.engines.choice.random_weights import RandomInt8
from q8core.quant import Plan, find_scheme
from q8core.quant.bits import bits_of
from tests.engines.conftest import plan_for
from tests.models import small

SIZES = {
    "vocab_size": 20,
    "num_hidden_layers": 2,
    "max_position_embeddings": 8,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("", "8-8-8"),
        ("linears.weight = { bits = 4 }\ntables.weight = { bits = 2 }\n", "4-2-8"),
        ('slots.word_embeddings = "float"\n', "8-32-8"),
        ('slots.head_output = "float"\n', "8-8-8"),
        # 32x32 four times and 32x64 twice a layer: half of the weights are the FFN's
        ('overrides."*.ffn_*".weight.bits = 4\n', "6-8-8, mixed"),
        ('overrides."layers.0.ffn_in".weight.bits = 2\n', "7.2-8-8, mixed"),
        ('overrides."layers.0.*" = "float"\noverrides."layers.1.*".weight.bits = 3\n', "17.5-8-20, mixed"),
    ],
)
def test_bits_are_of_weights_embeddings_and_activations(
    text: str, bits: str, tmp_path: Path, tiny_classifier: Path
) -> None:
    file = tmp_path / "own.toml"
    file.write_text(f'base = "q8bert"\n{text}')
    config = read_config(tiny_classifier)
    assert str(bits_of(Plan.of(config.spec, config.head("classify"), find_scheme(str(file))))) == bits


@pytest.mark.parametrize(
    ("scheme", "kernel", "bits", "note"),
    [
        ("q8bert", "native", "8-8-8", None),
        ("q8bert", "fbgemm", "8-8-8", None),
        ("qbert-4", "native", "4-8-8", None),
        ("qbert-4", "fbgemm", "4-8-8", "weights of 4 bits, held as int8"),
        ("qbert-3", "native", "3-8-8", "linear weights of 3 bits, held as 4"),
        ("kdlsq-2", "onednn", "2-2-8", "weights of 2 bits, held as int8"),
        ("mkq", "native", "6-8-6, mixed", None),
    ],
)
def test_engines_say_their_bits_and_which_take_more_in_memory(
    scheme: str, kernel: str, bits: str, note: str | None
) -> None:
    plan = plan_for("classify", small(scheme), **SIZES)
    facts = build_engine(plan, RandomInt8(plan), kernel).describe()
    assert (facts["bits"], facts["bits_note"]) == (bits, note)


def test_codes_of_several_widths_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(
        'base = "q8bert"\ntables.weight = { bits = 2 }\noverrides."*.ffn_in".weight.bits = 4\n'
    )
    plan = plan_for("classify", find_scheme(str(tmp_path / "own.toml")), **SIZES)
    facts = build_engine(plan, RandomInt8(plan), "onednn").describe()
    assert facts["bits_note"] == "weights of 2 and 4 bits, held as int8"
    floats = plan_for("classify", None, **SIZES)
    assert str(bits_of(floats)) == "32-32-32"
