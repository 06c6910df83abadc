"""config.json of every family: what is refused says where, and what is written does not contradict itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from q8core.checkpoint.config import parse_config, read_config
from q8core.errors import CheckpointError


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model_type": "mpnet", "max_position_embeddings": 2}, "max_position_embeddings must be above 2"),
        ({"model_type": "roberta", "pad_token_id": None}, "pad_token_id must be from 0 to 510"),
        ({"model_type": "bert", "vocab_size": 50, "pad_token_id": 50}, "pad_token_id is 50, beyond the 50 rows"),
        ({"model_type": "electra", "embedding_size": 0}, "embedding_size is 0; allowed: a whole number from 1"),
        ({"model_type": "bert", "initializer_range": "0.02"}, "initializer_range is '0.02'; allowed: a number"),
        ({"model_type": "bert", "num_attention_heads": 5}, "the hidden size, 768, is not a multiple of the 5 a"),
        ({"model_type": "bert", "head_dim": 0}, "head_dim is 0; allowed: a whole number from 1 to 178956970"),
        ({"model_type": "bert", "head_dim": "64"}, "head_dim is '64'; allowed: a whole number"),
        ({"model_type": "bert", "num_attention_heads": 12, "head_dim": 2**30}, "head_dim is 1073741824; allowed"),
        ({"model_type": "deberta-v2"}, "model_type is 'deberta-v2'; supported: bert, "),
    ],
)
def test_what_is_refused_names_the_file(values: dict[str, object], reason: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^here/config\.json: {reason}"):
        parse_config(values, "here/config.json")


def test_heads_of_another_size_are_those_of_our_own_models() -> None:
    half = parse_config({"model_type": "distilbert", "n_heads": 6, "head_dim": 64}, "it")
    assert (half.spec.attention, half.spec.head_size, half.spec.own_head_size) == (384, 64, 64)
    assert half.spec.linear_shapes[:2] == ((1152, 768), (768, 384))
    reason = "^here: 6 attention heads have 64 columns each .head_dim., together 384, and the hidden state has 768"
    with pytest.raises(CheckpointError, match=reason):
        half.check_others_read_it(Path("here"))
    usual = parse_config({"model_type": "bert", "head_dim": 64}, "it")
    assert usual.spec == parse_config({"model_type": "bert"}, "it").spec
    usual.check_others_read_it(Path("here"))


def test_other_labels_replace_their_number_too(tmp_path: Path) -> None:
    """Scripts write num_labels beside the names; transformers reads both."""
    config = parse_config({"model_type": "bert", "num_labels": 2}, "it").with_labels(("a", "b", "c"))
    config.save(tmp_path, "classify")
    assert "num_labels" not in json.loads((tmp_path / "config.json").read_text())
    assert read_config(tmp_path).labels == ("a", "b", "c")
    assert AutoConfig.from_pretrained(tmp_path).num_labels == 3
