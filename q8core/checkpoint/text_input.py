"""A model's text input: its tokenizer, checked against its embedding table, and its longest input."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from q8core.checkpoint.config import SHORTEST_INPUT, ModelConfig
from q8core.errors import CheckpointError, InputError
from q8core.special_tokens import sequence_template
from q8core.tokenizer import check_tokenizer, load_tokenizer, model_max_length


def checked_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer:
    """Return the tokenizer of a model's folder, without padding and truncation.

    Raises:
        CheckpointError: the tokenizer is missing, damaged, or has tokens that the model does not know.
    """
    tokenizer = load_tokenizer(folder)
    check_tokenizer(tokenizer, config.spec.vocabulary, str(folder))
    highest, token_types = sequence_template(tokenizer).one.highest_type, config.spec.token_types
    if 0 < token_types <= highest:
        raise CheckpointError(
            f"{folder}: the tokenizer gives a text token type {highest}, and type_vocab_size in config.json is "
            f"{token_types}; take the tokenizer that the model was trained with"
        )
    return tokenizer


def check_pairs(folder: Path, tokenizer: Tokenizer, token_types: int) -> None:
    """Refuse pairs of texts, and questions with contexts, if the second text has a token type that the model lacks.

    Args:
        folder: the model's folder, for messages.
        tokenizer: the model's tokenizer.
        token_types: number of token types in the model; with 0 it ignores the tokenizer's.

    Raises:
        InputError: the model lacks a token type, or the tokenizer cannot encode pairs.
    """
    highest = sequence_template(tokenizer).layout(pair=True).highest_type
    if 0 < token_types <= highest:
        has = "one token type" if token_types == 1 else f"{token_types} token types"
        raise InputError(
            f"{folder.name} takes single texts only: it has {has} (type_vocab_size is {token_types} in config.json), "
            f"and the second text of a pair has token type {highest}"
        )


def own_length(folder: Path, config: ModelConfig) -> int:
    """Return how many tokens a model reads: its positions, or fewer if its tokenizer's config says so.

    Raises:
        CheckpointError: the value in the tokenizer's config is too small for a text, or is not a number.
    """
    positions, wanted = config.spec.positions, model_max_length(folder)
    if wanted is not None and wanted < SHORTEST_INPUT:
        raise CheckpointError(
            f"{folder}/tokenizer_config.json: model_max_length is {wanted}; at least {SHORTEST_INPUT} is needed"
        )
    return positions if wanted is None else min(positions, wanted)
