"""What a model takes of texts: its tokenizer, checked against its table, and its longest input."""

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
        CheckpointError: it is missing, damaged, or has tokens that the model does not know.
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
    """Refuse pairs of texts, and questions with contexts, where the second text has a token type the model lacks.

    Args:
        folder: of the model, for messages.
        tokenizer: its tokenizer.
        token_types: how many the model has; 0 where it has none, and ignores those of the tokenizer.

    Raises:
        InputError: the model lacks one, or the tokenizer makes no pairs.
    """
    highest = sequence_template(tokenizer).layout(pair=True).highest_type
    if 0 < token_types <= highest:
        has = "one token type" if token_types == 1 else f"{token_types} token types"
        raise InputError(
            f"{folder.name} takes single texts only: it has {has} (type_vocab_size is {token_types} in config.json), "
            f"and the second text of a pair has token type {highest}"
        )


def own_length(folder: Path, config: ModelConfig) -> int:
    """Return how many tokens a model reads by its own account: its positions, or less by its tokenizer's config.

    Raises:
        CheckpointError: the tokenizer's config asks for less than a text needs, or for no number.
    """
    positions, wanted = config.spec.positions, model_max_length(folder)
    if wanted is not None and wanted < SHORTEST_INPUT:
        raise CheckpointError(
            f"{folder}/tokenizer_config.json: model_max_length is {wanted}; at least {SHORTEST_INPUT} is needed"
        )
    return positions if wanted is None else min(positions, wanted)
