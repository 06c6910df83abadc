"""Extractive question answering: long contexts to overlapping windows, span logits to answers.

Current transformers has neither the pipeline nor the SQuAD processors, so both directions are implemented here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from q8core.errors import InputError
from q8core.special_tokens import sequence_template
from q8core.tokenizer import encode_plain

# Tokens of a question; longer ones are cut, as in Hugging Face's pipeline.
MAX_QUESTION_LEN = 64

Place = tuple[int, int]
"""Offsets of a span in the context, in code points: start, and exclusive end."""


@dataclass(frozen=True)
class Window:
    """A question and a piece of the context, with the tokenizer's special tokens around them.

    ``offsets[i]`` is the half-open code point range of token i in the context, None for other tokens;
    ``words[i]`` is the range of the whole word (between spaces and punctuation) that token i is part of.
    """

    input_ids: list[int]
    token_type_ids: list[int]
    offsets: list[tuple[int, int] | None]
    words: list[tuple[int, int] | None]
    context_start: int
    """Index in this window of the first context token."""
    context_end: int
    """Index after the last one."""
    first_token: int
    """Index of that token among all tokens of the context."""


@dataclass(frozen=True)
class Answer:
    """A span of the context; ``start`` and ``end`` are code points, end exclusive."""

    answer: str
    score: float
    start: int
    end: int


def encode_windows(
    tokenizer: Tokenizer,
    question: str,
    context: str,
    max_seq_len: int = 384,
    doc_stride: int = 128,
    max_question_len: int = MAX_QUESTION_LEN,
) -> list[Window]:
    """Cut a context of any length into windows of at most ``max_seq_len`` tokens.

    ``doc_stride`` is the number of context tokens that neighbouring windows share, as in Hugging Face's
    pipeline (there ``stride``). If it is at least a window's room for context, neighbours share half of the room
    instead; see :func:`window_step`.

    Raises:
        InputError: empty question or context, no room for context next to the question, or a tokenizer that makes no
            pairs.
    """
    if not question.strip():
        raise InputError("the question is empty")
    if not context.strip():
        raise InputError("the context is empty")
    question_ids = encode_plain(tokenizer, question).ids[:max_question_len]
    encoded = encode_plain(tokenizer, context)
    context_ids, offsets = encoded.ids, encoded.offsets  # read once: each access builds a list of the whole context
    if not context_ids:
        raise InputError("the context holds no token that the vocabulary can represent")
    layout = sequence_template(tokenizer).layout(pair=True)
    room = max_seq_len - len(question_ids) - layout.specials
    if room < 1:
        raise InputError(
            f"max_seq_len {max_seq_len} leaves no room for context beside a question of "
            f"{len(question_ids)} tokens; at least {len(question_ids) + layout.specials + 1} is needed"
        )
    step = window_step(room, doc_stride)
    words = _word_places(encoded)
    head, tail = [None] * len(layout.join(question_ids)[0]), [None] * len(layout.marks[-1].ids)
    windows: list[Window] = []
    for first in range(0, len(context_ids), step):
        piece = context_ids[first : first + room]
        ids, types = layout.join(question_ids, piece)
        windows.append(
            Window(
                input_ids=ids,
                token_type_ids=types,
                offsets=[*head, *offsets[first : first + room], *tail],
                words=[*head, *words[first : first + room], *tail],
                context_start=len(head),
                context_end=len(head) + len(piece),
                first_token=first,
            )
        )
        if first + room >= len(context_ids):
            break
    return windows


def question_is_cut(tokenizer: Tokenizer, question: str, windows: Sequence[Window], max_question_len: int) -> bool:
    """Return whether a question has more tokens than its windows contain."""
    around = len(sequence_template(tokenizer).layout(pair=True).join([])[0])
    if windows[0].context_start - around < max_question_len:
        return False
    return len(encode_plain(tokenizer, question)) > max_question_len


def window_step(room: int, doc_stride: int) -> int:
    """Return how many context tokens a window starts after the previous one, for windows with ``room`` for context.

    That is ``room - doc_stride``. An overlap that would leave a window nothing new is replaced by ``room // 2``, so
    that a context makes at most about twice the windows that it makes without overlap.
    """
    overlap = doc_stride if doc_stride < room else room // 2
    return room - overlap


def _word_places(encoded: Encoding) -> list[tuple[int, int]]:
    """Return for each token the code point range of its whole word."""
    place: dict[int | None, tuple[int, int]] = {}
    for word, (start, end) in zip(encoded.word_ids, encoded.offsets, strict=True):
        known = place.get(word, (start, end))
        place[word] = (min(known[0], start), max(known[1], end))
    return [place[word] for word in encoded.word_ids]


def max_context(windows: Sequence[Window]) -> list[NDArray[np.bool_]]:
    """Return for each window which tokens have their best context there (Devlin et al. 2018, SQuAD code).

    A token in several windows belongs to the one in which the smaller of its left and right contexts is largest, plus a
    hundredth of the window's length as tie-break; the first such window wins.
    """
    lengths = [window.context_end - window.context_start for window in windows]
    shown = [slice(window.first_token, window.first_token + n) for window, n in zip(windows, lengths, strict=True)]
    best = np.full(max(part.stop for part in shown), -np.inf)  # for each token of the whole context
    owner = np.zeros(len(best), np.int64)
    for index, (part, length) in enumerate(zip(shown, lengths, strict=True)):
        i = np.arange(length)
        score = np.minimum(i, length - 1 - i) + 0.01 * length
        owner[part] = np.where(score > best[part], index, owner[part])
        best[part] = np.maximum(score, best[part])
    return [owner[part] == index for index, part in enumerate(shown)]


def best_answers(
    windows: Sequence[Window],
    logits: Sequence[NDArray[np.float32]],
    context: str,
    top_k: int = 1,
    max_answer_len: int = 15,
    handle_impossible: bool = False,
    align_to_words: bool = True,
) -> list[Answer]:
    """Find the best spans over all windows of one context.

    Args:
        windows: the windows of one question and context.
        logits: one array of shape ``(window length, 2)`` per window: start and end logits.
        context: the text that the offsets point into.
        top_k: most spans to return, best first.
        max_answer_len: longest answer in tokens.
        handle_impossible: also consider "no answer" (empty string, offsets 0).
        align_to_words: grow a span that starts or ends inside a word to the whole word.

    Returns:
        At least one answer, best first, all with different offsets. All spans of at most ``max_answer_len`` tokens are
        compared; each token starts spans in the window where it has its best context (:func:`max_context`).

    A score is P(start) * P(end) of the best token span with these offsets. The flags decide which spans count, and
    change no score. With one window it is the formula of Hugging Face's pipeline: a softmax over the first token, which
    stands for "no answer", and the context tokens; question and separators are excluded.

    With several windows the softmax runs over the context tokens of all of them together (shared normalisation,
    Clark & Gardner 2018), and "no answer" is the first token of the window that is least sure of it. Hugging Face's
    pipeline normalises each window alone, so a window without the answer, where all logits are low, can outscore the
    right one. Since transformers 4.53 it also sums the scores of one span over the windows, which can exceed 1.
    """
    for name, value in (("top_k", top_k), ("max_answer_len", max_answer_len)):
        if value < 1:
            raise InputError(f"{name} is {value}; at least 1")
    scope, null = _candidates(windows, logits)
    log_z = float(_logsumexp(np.concatenate([null[None], *scope])).sum())
    found: dict[Place, float] = {}
    for window, inside, may_start in zip(windows, scope, max_context(windows), strict=True):
        places = (window.words if align_to_words else window.offsets)[window.context_start : window.context_end]
        sums = _span_sums(inside, may_start, max_answer_len)
        for place, logit in _best_places(sums, places, top_k).items():
            found[place] = max(logit, found.get(place, -math.inf))
    if handle_impossible:
        found[0, 0] = max(float(null.sum()), found.get((0, 0), -math.inf))
    best = sorted(found.items(), key=lambda item: -item[1])[:top_k]
    return [Answer(context[start:end], math.exp(logit - log_z), start, end) for (start, end), logit in best]


def _candidates(
    windows: Sequence[Window], logits: Sequence[NDArray[np.float32]]
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    """Return the logits in the softmax: each window's ``(context tokens, 2)``, and those of "no answer", ``(2,)``."""
    scope: list[NDArray[np.float64]] = []
    nulls: list[NDArray[np.float64]] = []
    for window, table in zip(windows, logits, strict=True):
        if table.shape != (len(window.input_ids), 2):
            raise InputError(f"span logits have shape {table.shape}, expected ({len(window.input_ids)}, 2)")
        scope.append(table[window.context_start : window.context_end].astype(np.float64))
        nulls.append(table[0].astype(np.float64))
    # no answer needs every window to say so: the least sure window decides
    return scope, min(nulls, key=lambda pair: float(pair.sum()))


def _logsumexp(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log(sum(exp(values))) of each column, without overflow."""
    largest = values.max(axis=0)
    return largest + np.log(np.exp(values - largest).sum(axis=0))


def _span_sums(inside: NDArray[np.float64], may_start: NDArray[np.bool_], max_answer_len: int) -> NDArray[np.float64]:
    """Return start logit + end logit of every span, ``(context tokens, longest span)``; -inf where there is no span.

    Element ``[i, j]`` is the span from token i to token i + j; ``inside`` is ``(context tokens, 2)``.
    """
    longest = min(max_answer_len, len(inside))
    ends = np.concatenate([inside[:, 1], np.full(longest - 1, -np.inf)])
    starts = np.where(may_start, inside[:, 0], -np.inf)
    return starts[:, None] + sliding_window_view(ends, longest)


def _best_places(sums: NDArray[np.float64], places: Sequence[Place | None], top_k: int) -> dict[Place, float]:
    """Return the ``top_k`` best offsets in the text, best first, each with the best sum of its token spans.

    Args:
        sums: the sums of all token spans, from :func:`_span_sums`.
        places: the offsets of all context tokens.
        top_k: most offsets to return.
    """
    flat, longest = sums.ravel(), sums.shape[1]
    best: dict[Place, float] = {}
    keep = 8 * top_k  # token spans that begin and end in the same words share their offsets
    while True:
        kept = _largest(sums, keep)
        for span in kept.tolist():
            first, more = divmod(span, longest)
            left, right = places[first], places[first + more]
            assert left is not None  # context tokens always have offsets
            assert right is not None
            best.setdefault((left[0], right[1]), float(flat[span]))
            if len(best) == top_k:
                return best
        if len(kept) < keep:
            return best
        keep *= 8


def _largest(sums: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return flat indices of the ``count`` or more spans with the largest sums, in order; equal sums by index.

    There are fewer only if there are no more spans. All spans equal to the last one are included, so that their order
    does not depend on ``count``.
    """
    floor = np.finfo(np.float64).min
    if count <= len(sums):
        # at least `count` spans reach the count-th best of the starts' best sums: no need to sort all spans
        floor = max(floor, np.partition(sums.max(axis=1), -count)[-count])
    flat = sums.ravel()
    kept = np.flatnonzero(flat >= floor)
    return kept[np.argsort(-flat[kept], kind="stable")]
