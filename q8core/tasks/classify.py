"""Text classification: one or two texts to tokens, logits to labels with scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from q8core.errors import InputError
from q8core.special_tokens import Layout, sequence_template
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


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One label with its score; a model that predicts a number has LABEL_0 with the number as its score."""

    label: str
    score: float


def encode_text(
    tokenizer: Tokenizer, text: str, text_pair: str | None, max_length: int, side: Side = "right"
) -> Encoded:
    """Encode one text or a pair; see `encode_texts`."""
    return encode_texts(tokenizer, [(text, text_pair)], max_length, side)[0]


def encode_texts(
    tokenizer: Tokenizer, items: Sequence[tuple[str, str | None]], max_length: int, side: Side = "right"
) -> list[Encoded]:
    """Encode texts and pairs with the tokenizer's special tokens, each cut to ``max_length`` tokens.

    A pair loses tokens one by one from the longer text, as in BERT's original pre-processing, and both texts on the
    same side.

    Args:
        tokenizer: the model's.
        items: ``(text, text_pair or None)`` each.
        max_length: tokens of an input, special ones included.
        side: the side on which tokens are removed.

    Raises:
        InputError: ``max_length`` leaves no room for text, or the tokenizer makes no pairs.
    """
    template = sequence_template(tokenizer)
    layouts = [template.layout(pair=pair is not None) for _, pair in items]
    for layout, (_, pair) in zip(layouts, items, strict=True):
        _check_room(layout, 1 if pair is None else 2, max_length)
    texts = [text for item in items for text in item if text is not None]
    ids = iter((first_ids if side == "right" else last_ids)(tokenizer, texts, max_length))
    return [
        _join(layout, [next(ids)] if pair is None else [next(ids), next(ids)], max_length, side)
        for layout, (_, pair) in zip(layouts, items, strict=True)
    ]


def _check_room(layout: Layout, texts: int, max_length: int) -> None:
    if max_length - layout.specials < texts:
        raise InputError(
            f"max_length {max_length} leaves no room for text; at least {layout.specials + texts} are needed: "
            f"{layout.specials} special tokens, and one for each text"
        )


def _join(layout: Layout, ids: list[list[int]], max_length: int, side: Side) -> Encoded:
    room, lengths = max_length - layout.specials, [len(one) for one in ids]
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
    rows: list[list[float]] = scores.tolist()
    places: list[list[int]] = order.tolist()
    return [[LabelScore(labels[n], row[n]) for n in best] for row, best in zip(rows, places, strict=True)]
