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
        ({"model_type": "deberta-v2"}, "model_type is 'deberta-v2'; supported: bert, "),
    ],
)
def test_what_is_refused_names_the_file(values: dict[str, object], reason: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^here/config\.json: {reason}"):
        parse_config(values, "here/config.json")


def test_other_labels_replace_their_number_too(tmp_path: Path) -> None:
    """Scripts write num_labels beside the names; transformers reads both."""
    config = parse_config({"model_type": "bert", "num_labels": 2}, "it").with_labels(("a", "b", "c"))
    config.save(tmp_path, "classify")
    assert "num_labels" not in json.loads((tmp_path / "config.json").read_text())
    assert read_config(tmp_path).labels == ("a", "b", "c")
    assert AutoConfig.from_pretrained(tmp_path).num_labels == 3
