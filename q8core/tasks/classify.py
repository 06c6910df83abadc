"""Text classification: one or two texts to tokens, logits to labels with scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from q8core.errors import InputError
from q8core.tokenizer import first_ids, last_ids

FunctionToApply = Literal["softmax", "sigmoid", "none"]
Side = Literal["left", "right"]
"""Where a text loses tokens: at its beginning or at its end."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of one input, ``[CLS] a [SEP]`` or ``[CLS] a [SEP] b [SEP]``, not padded."""

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
    """Encode one text or a pair, cut to ``max_length`` tokens the way BERT expects.

    A pair is cut token by token from the longer text, as in BERT's original pre-processing; each of the two texts is
    cut on the same side.

    Raises:
        InputError: ``max_length`` leaves no room for text.
    """
    if max_length < 3 + (2 if text_pair is not None else 0):
        raise InputError(f"max_length {max_length} leaves no room for text; at least 3, or 5 for pairs")
    ids_of = first_ids if side == "right" else last_ids
    a = ids_of(tokenizer, text, max_length)
    b = ids_of(tokenizer, text_pair, max_length) if text_pair is not None else None
    cls_id, sep_id = special_token_id(tokenizer, "[CLS]"), special_token_id(tokenizer, "[SEP]")
    room = max_length - (2 if b is None else 3)
    keep_a, keep_b = _share(len(a), len(b or []), room)
    truncated = keep_a < len(a) or (b is not None and keep_b < len(b))
    ids = [cls_id, *_cut(a, keep_a, side), sep_id]
    types = [0] * len(ids)
    if b is not None:
        ids += [*_cut(b, keep_b, side), sep_id]
        types += [1] * (keep_b + 1)
    return Encoded(ids, types, truncated)


def _cut(ids: list[int], keep: int, side: Side) -> list[int]:
    return ids[:keep] if side == "right" else ids[len(ids) - keep :]


def _share(len_a: int, len_b: int, room: int) -> tuple[int, int]:
    """Lengths left of both texts when the longer one gives up tokens until both fit."""
    if len_a + len_b <= room:
        return len_a, len_b
    half = room // 2
    if len_b <= half:
        return room - len_b, len_b
    if len_a <= room - half:
        return len_a, room - len_a
    return room - half, half


def special_token_id(tokenizer: Tokenizer, token: str) -> int:
    """Id of a special token; InputError when the vocabulary lacks it."""
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise InputError(f"the tokenizer has no {token} token: only BERT vocabularies are supported")
    return token_id


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
        # of the magnitude, whose exponential cannot overflow
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
