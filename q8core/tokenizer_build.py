"""Builds tokenizers like those classes of transformers that take only the vocabulary from ``tokenizer.json``."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Model, Unigram, WordPiece

from q8core.errors import CheckpointError
from q8core.tokenizer_config import TokenizerSettings

_PREFIX, _LONGEST_WORD = "##", 100  # what transformers' BertTokenizer always takes
_SPACE = "▁"  # the space in the pieces of a Unigram vocabulary


def build_tokenizer(tokenizer: Tokenizer, settings: TokenizerSettings, file: Path) -> Tokenizer:
    """Return a tokenizer with a file's vocabulary and everything else from the settings, without added tokens.

    Args:
        tokenizer: the tokenizer in the file.
        settings: settings of a class that builds a model.
        file: ``tokenizer.json``.

    Raises:
        CheckpointError: the file's model is of another kind than the class needs.
    """
    model, kind = tokenizer.model, settings.rules.model
    if type(model).__name__ != kind:
        raise CheckpointError(
            f"{file}: the model is {type(model).__name__}; {settings.tokenizer_class} needs a {kind} vocabulary"
        )
    if kind == "Unigram":
        made = _pieces(settings, file)
    else:
        made = (_word_pieces if kind == "WordPiece" else _bytes)(tokenizer, settings)
    made.decoder = tokenizer.decoder
    if tokenizer.truncation is not None:
        made.enable_truncation(**tokenizer.truncation)
    if tokenizer.padding is not None:
        made.enable_padding(**tokenizer.padding)
    return made


def put_special_tokens_around(tokenizer: Tokenizer, settings: TokenizerSettings, file: Path) -> None:
    """Set the post-processor of a tokenizer's class, if that has its own; tokens must have been added.

    Raises:
        CheckpointError: a special token is not valid in a template.
    """
    if settings.rules.around is None:
        return
    before, after = (str(settings.named[key]) for key in settings.rules.around)
    ids = {token: cast(int, tokenizer.token_to_id(token)) for token in (before, after)}
    kind = settings.rules.model
    if settings.rules.separators == 2 and kind != "Unigram":
        trim = settings.trim_offsets
        space = settings.add_prefix_space
        tokenizer.post_processor = processors.RobertaProcessing((after, ids[after]), (before, ids[before]), trim, space)
        return
    if settings.rules.separators == 2:
        single, pair = [before, "$A", after], [before, "$A", after, after, "$B", after]
    else:
        single = [f"{before}:0", "$A:0", f"{after}:0"]
        pair = [*single, "$B:1", f"{after}:1"]
    try:
        made = processors.TemplateProcessing(single=single, pair=pair, special_tokens=list(ids.items()))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{file}: {before!r} and {after!r} cannot be put around a text: {error}") from error
    tokenizer.post_processor = made


def _word_pieces(tokenizer: Tokenizer, settings: TokenizerSettings) -> Tokenizer:
    model = cast(WordPiece, tokenizer.model)
    unknown = str(settings.named["unk_token"])
    if (model.unk_token, model.continuing_subword_prefix, model.max_input_chars_per_word) != (
        unknown, _PREFIX, _LONGEST_WORD,
    ):  # fmt: skip
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        model = WordPiece(
            vocabulary, unk_token=unknown, continuing_subword_prefix=_PREFIX, max_input_chars_per_word=_LONGEST_WORD
        )
    made = Tokenizer(model)
    made.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.tokenize_chinese_chars,
        strip_accents=settings.strip_accents,
        lowercase=settings.do_lower_case,
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


def _bytes(tokenizer: Tokenizer, settings: TokenizerSettings) -> Tokenizer:
    model = cast(BPE, tokenizer.model)
    model.unk_token = None  # every byte is known
    model.dropout = None
    model.fuse_unk = model.byte_fallback = model.ignore_merges = False
    model.continuing_subword_prefix = model.end_of_word_suffix = ""
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=settings.add_prefix_space)
    return made


def _pieces(settings: TokenizerSettings, file: Path) -> Tokenizer:
    # from the file, since the model does not expose its scores, and would round them
    values = cast("dict[str, Any]", json.loads(file.read_bytes()))
    vocabulary = [(str(piece), float(score)) for piece, score in values["model"]["vocab"]]
    made = Tokenizer(_unigram(vocabulary, settings, file))
    characters = _character_map(values.get("normalizer"))
    if characters is not None:
        made.normalizer = normalizers.Precompiled(base64.b64decode(characters))
    scheme = "always" if settings.add_prefix_space else "never"
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme=scheme)]
    )
    return made


def _unigram(vocabulary: list[tuple[str, float]], settings: TokenizerSettings, file: Path) -> Model:
    """Return the model with the unknown token at the index that the class expects."""
    place = settings.rules.unknown_place
    if place is None:
        unknown = str(settings.named["unk_token"])
        place = next((index for index, (piece, _) in enumerate(vocabulary) if piece == unknown), 0)
    try:
        return Unigram(vocab=vocabulary, unk_id=place, byte_fallback=False)
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{file}: {settings.tokenizer_class} cannot read its vocabulary: {error}") from error


def _character_map(normalizer: Any) -> str | None:
    """Return the first character map of a file's normalizer, the only part that transformers uses."""
    steps: list[Any] = (
        normalizer["normalizers"] if normalizer and normalizer.get("type") == "Sequence" else [normalizer]
    )
    found = (step["precompiled_charsmap"] for step in steps if step and step.get("type") == "Precompiled")
    return next(found, None)
