"""Text classification: one or two texts to tokens, logits to labels with scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from q8core.errors import InputError
from q8core.special_tokens import sequence_template
from q8core.tokenizer import first_ids, last_ids

FunctionToApply = Literal["softmax", "sigmoid", "none"]
Side = Literal["left", "right"]
"""The side on which truncation removes tokens: the beginning or the end."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of one input, a text or a pair, with special tokens and without padding."""

    input_ids: list[int]
    token_type_ids: list[int]
    truncated: bool


@dataclass(frozen=True)
class LabelScore:
    """One label with its score after ``function_to_apply``."""

    label: str
    score: float


def encode_text(
    tokenizer: Tokenizer, text: str, text_pair: str | None, max_length: int, side: Side = "right"
) -> Encoded:
    """Encode one text or a pair with the tokenizer's special tokens, cut to ``max_length`` tokens.

    A pair loses tokens one by one from the longer text, as in BERT's original pre-processing, and both texts on the
    same side.

    Raises:
        InputError: ``max_length`` leaves no room for text, or the tokenizer makes no pairs.
    """
    layout = sequence_template(tokenizer).layout(pair=text_pair is not None)
    texts = [text] if text_pair is None else [text, text_pair]
    room = max_length - layout.specials
    if room < len(texts):
        raise InputError(
            f"max_length {max_length} leaves no room for text; at least {layout.specials + len(texts)} are needed: "
            f"{layout.specials} special tokens, and one for each text"
        )
    ids_of = first_ids if side == "right" else last_ids
    ids = [ids_of(tokenizer, one, max_length) for one in texts]
    lengths = [len(one) for one in ids]
    kept = _share(lengths[0], lengths[1], room) if len(lengths) == 2 else [min(lengths[0], room)]
    joined, types = layout.join(*(_cut(one, keep, side) for one, keep in zip(ids, kept, strict=True)))
    return Encoded(joined, types, truncated=sum(kept) < sum(lengths))


def _cut(ids: list[int], keep: int, side: Side) -> list[int]:
    return ids[:keep] if side == "right" else ids[len(ids) - keep :]


def _share(len_a: int, len_b: int, room: int) -> list[int]:
    """Return the lengths of both texts after removing tokens from the longer one until both fit."""
    if len_a + len_b <= room:
        return [len_a, len_b]
    half = room // 2
    if len_b <= half:
        return [room - len_b, len_b]
    if len_a <= room - half:
        return [len_a, room - len_a]
    return [room - half, half]


def postprocess(
    logits: NDArray[np.floating],
    labels: Sequence[str],
    function_to_apply: FunctionToApply = "softmax",
    top_k: int | None = None,
) -> list[list[LabelScore]]:
    """Turn logits, shape ``(inputs, labels)``, into each input's labels sorted by score, best first."""
    scores = np.asarray(logits, np.float64)
    if function_to_apply == "softmax":
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
    elif function_to_apply == "sigmoid":
        # exp of the negative magnitude cannot overflow
        small = np.exp(-np.abs(scores))
        scores = np.where(scores >= 0, 1.0, small) / (1.0 + small)
    elif function_to_apply != "none":
        raise InputError(f"function_to_apply {function_to_apply!r} is not one of softmax, sigmoid, none")
    order = np.argsort(-scores, kind="stable")[:, :top_k]
    places: list[list[int]] = order.tolist()
    best: list[list[float]] = np.take_along_axis(scores, order, -1).tolist()
    return [
        [LabelScore(labels[place], score) for place, score in zip(*one, strict=True)]
        for one in zip(places, best, strict=True)
    ]
