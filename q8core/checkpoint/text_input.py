"""What a model takes of texts: its tokenizer, checked against its table, and its longest input."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from q8core.checkpoint.config import SHORTEST_INPUT, ModelConfig
from q8core.errors import CheckpointError, InputError
from q8core.tokenizer import check_tokenizer, load_tokenizer, model_max_length


def checked_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer:
    """Return the tokenizer of a model's folder, without padding and truncation.

    Raises:
        CheckpointError: it is missing, damaged, or has tokens that the model does not know.
    """
    tokenizer = load_tokenizer(folder)
    check_tokenizer(tokenizer, config.spec.vocabulary, str(folder))
    return tokenizer


def check_pairs(folder: Path, config: ModelConfig) -> None:
    """Refuse pairs of texts, and questions with contexts, for a model that cannot tell the two parts.

    Raises:
        InputError: the model has one token type.
    """
    if config.spec.token_types < 2:
        raise InputError(
            f"{folder.name} takes single texts only: it has one token type (type_vocab_size is 1 in config.json), and "
            "the second text of a pair has token type 1"
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
