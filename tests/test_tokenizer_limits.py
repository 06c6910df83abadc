"""What a tokenizer and its config say against the model: the longest input, ids beyond the table, special tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, processors

from q8core.errors import CheckpointError
from q8core.tokenizer import check_tokenizer, model_max_length
from tests.test_tokenizer_files import write_json


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (None, None), ({}, None), ({"model_max_length": None}, None), ({"model_max_length": 512}, 512),
        ({"model_max_length": 512.0}, 512), ({"model_max_length": 1e30}, None),
        ({"model_max_length": 10**30}, None), ('{"model_max_length": Infinity}', None),
    ],
)  # fmt: skip
def test_model_max_length_is_the_files(tmp_path: Path, config: object, length: int | None) -> None:
    write_json(tmp_path / "tokenizer_config.json", config)
    found = model_max_length(tmp_path)
    assert found == length
    assert type(found) is type(length)


@pytest.mark.parametrize("value", ["0", "-1", "512.5", "true", '"512"', "[]", "NaN", "-Infinity", "0.5"])
def test_a_model_max_length_that_is_no_length_is_refused(tmp_path: Path, value: str) -> None:
    file = tmp_path / "tokenizer_config.json"
    file.write_text(f'{{"model_max_length": {value}}}')
    with pytest.raises(CheckpointError) as refused:
        model_max_length(tmp_path)
    assert str(refused.value) == f"{file}: model_max_length is {value}; a positive whole number is needed"


def word_pieces(ids: dict[str, int], first: int = 1, last: int = 2) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", last), ("[CLS]", first))
    return tokenizer


def test_ids_beyond_the_models_table_are_named() -> None:
    tokenizer = word_pieces({word: i for i, word in enumerate(["[UNK]", "[CLS]", "[SEP]", "a"])})
    check_tokenizer(tokenizer, 4, "my model")
    tokenizer.add_tokens(["new", "newer", "newest", "last"])
    check_tokenizer(tokenizer, 8, "my model")
    with pytest.raises(CheckpointError) as refused:
        check_tokenizer(tokenizer, 4, "my model")
    assert str(refused.value) == (
        "my model: the tokenizer's ids go up to 7, the model's table has 4 rows; beyond it: 'new' (4), 'newer' (5), "
        "'newest' (6), ...; take the tokenizer that the model was trained with, or give the model rows for them "
        "(model.resize_token_embeddings(8)) and train it"
    )
    holes = word_pieces({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "far": 90})
    check_tokenizer(holes, 91, "my model")
    with pytest.raises(CheckpointError, match=r"go up to 90, .* 90 rows; beyond it: 'far' \(90\); take"):
        check_tokenizer(holes, 90, "my model")


def test_special_tokens_beyond_the_models_table_are_named() -> None:
    """A post-processor brings its own ids, which need not be those of the vocabulary."""
    tokenizer = word_pieces({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}, last=30)
    check_tokenizer(tokenizer, 31, "m")
    with pytest.raises(CheckpointError, match=r"go up to 30, .* 30 rows; beyond it: 'a special token' \(30\); take"):
        check_tokenizer(tokenizer, 30, "m")


def test_a_tokenizer_without_special_tokens_around_a_text_is_refused() -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}, unk_token="[UNK]"))
    with pytest.raises(CheckpointError, match="m: the tokenizer's post_processor does not put special tokens before"):
        check_tokenizer(tokenizer, 3, "m")
