"""Extractive question answering: long contexts to overlapping windows, span logits to answers.

Current transformers has neither the pipeline nor the SQuAD processors, so both directions live here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Encoding, Tokenizer

from q8core.errors import InputError
from q8core.tasks.classify import special_token_id
from q8core.tokenizer import encode_plain

# Candidates kept per window side before pairing: the usual size in SQuAD post-processing.
N_BEST = 20


@dataclass(frozen=True)
class Window:
    """``[CLS] question [SEP] piece of context [SEP]``.

    ``offsets[i]`` is the half-open code point range of token i in the context, None outside it;
    ``words[i]`` is the same for the whole word (between spaces and punctuation) that token i is part of.
    """

    input_ids: list[int]
    token_type_ids: list[int]
    offsets: list[tuple[int, int] | None]
    words: list[tuple[int, int] | None]
    context_start: int
    """Index in this window of the first context token."""
    first_token: int
    """Index in the whole context's tokens of that token."""


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
    max_question_len: int = 64,
) -> list[Window]:
    """Cut a context of any length into windows of at most ``max_seq_len`` tokens.

    ``doc_stride`` is the number of context tokens that neighbouring windows share, as in Hugging Face's
    pipeline (there ``stride``). Where it is as large as a window's room for context, or larger, neighbours share
    half of the room instead: see :func:`window_step`.

    Raises:
        InputError: empty question or context, or no room for context beside the question.
    """
    if not question.strip():
        raise InputError("the question is empty")
    if not context.strip():
        raise InputError("the context is empty")
    question_ids = encode_plain(tokenizer, question).ids[:max_question_len]
    encoded = encode_plain(tokenizer, context)
    context_ids, offsets = encoded.ids, encoded.offsets  # each time anew, these would be lists of the whole context
    if not context_ids:
        raise InputError("the context holds no token that the vocabulary can represent")
    room = max_seq_len - len(question_ids) - 3
    if room < 1:
        raise InputError(
            f"max_seq_len {max_seq_len} leaves no room for context beside a question of "
            f"{len(question_ids)} tokens; at least {len(question_ids) + 4} is needed"
        )
    step = window_step(room, doc_stride)
    words = _word_places(encoded)
    cls_id, sep_id = special_token_id(tokenizer, "[CLS]"), special_token_id(tokenizer, "[SEP]")
    head = [cls_id, *question_ids, sep_id]
    windows: list[Window] = []
    for first in range(0, len(context_ids), step):
        piece = context_ids[first : first + room]
        windows.append(
            Window(
                input_ids=[*head, *piece, sep_id],
                token_type_ids=[0] * len(head) + [1] * (len(piece) + 1),
                offsets=[*([None] * len(head)), *offsets[first : first + room], None],
                words=[*([None] * len(head)), *words[first : first + room], None],
                context_start=len(head),
                first_token=first,
            )
        )
        if first + room >= len(context_ids):
            break
    return windows


def window_step(room: int, doc_stride: int) -> int:
    """How many context tokens a window starts after the one before it, for windows with ``room`` for context.

    That is ``room - doc_stride``. An overlap that would leave a window nothing new cannot be had: it becomes
    ``room // 2``, so that a context makes at most about twice the windows that it makes without overlap.
    """
    overlap = doc_stride if doc_stride < room else room // 2
    return room - overlap


def _word_places(encoded: Encoding) -> list[tuple[int, int]]:
    """For each token the code point range of its whole word."""
    place: dict[int | None, tuple[int, int]] = {}
    for word, (start, end) in zip(encoded.word_ids, encoded.offsets, strict=True):
        known = place.get(word, (start, end))
        place[word] = (min(known[0], start), max(known[1], end))
    return [place[word] for word in encoded.word_ids]


def max_context(windows: Sequence[Window]) -> list[list[bool]]:
    """For each window, which of its context tokens it shows best (Devlin et al. 2018, SQuAD code).

    A token seen by several windows belongs to the one with the largest smaller-side context, plus a
    hundredth of the window's length as tie-break; the first such window wins.
    """
    best: dict[int, tuple[float, int]] = {}
    for index, window in enumerate(windows):
        length = len(window.input_ids) - 1 - window.context_start
        for i in range(length):
            score = min(i, length - 1 - i) + 0.01 * length
            token = window.first_token + i
            if token not in best or score > best[token][0]:
                best[token] = (score, index)
    return [
        [best[window.first_token + i][1] == index for i in range(len(window.input_ids) - 1 - window.context_start)]
        for index, window in enumerate(windows)
    ]


@dataclass(frozen=True)
class _Span:
    logit: float
    start: int
    end: int


def best_answers(
    windows: Sequence[Window],
    logits: Sequence[torch.Tensor],
    context: str,
    top_k: int = 1,
    max_answer_len: int = 15,
    handle_impossible: bool = False,
    align_to_words: bool = True,
) -> list[Answer]:
    """Search the best spans over all windows of one context.

    Args:
        windows: the windows of one question and context.
        logits: one tensor of shape ``(window length, 2)`` per window: start and end logits.
        context: the text that the offsets point into.
        top_k: how many different spans to return at most, best first.
        max_answer_len: longest answer in tokens.
        handle_impossible: also consider "no answer" (empty string, offsets 0).
        align_to_words: grow a span that starts or ends inside a word to the whole word.

    Returns:
        At least one answer, best first. Only the N best starts and ends of each window are paired; where none of
        these pairs fits (all the starts come after the ends, or too far before them), every span is considered.

    A score is P(start) * P(end). The softmax runs over the context tokens of all windows together
    (shared normalisation, Clark & Gardner 2018): with one window that is the Hugging Face pipeline's
    score, and with several it ranks spans by their logits instead of favouring windows without an answer.
    """
    for name, value in (("top_k", top_k), ("max_answer_len", max_answer_len)):
        if value < 1:
            raise InputError(f"{name} is {value}; at least 1")
    scope: list[torch.Tensor] = []
    nulls: list[torch.Tensor] = []
    for window, table in zip(windows, logits, strict=True):
        if table.shape != (len(window.input_ids), 2):
            raise InputError(f"span logits have shape {tuple(table.shape)}, expected ({len(window.input_ids)}, 2)")
        scope.append(table[window.context_start : -1].double())  # (context tokens, 2)
        nulls.append(table[0].double())
    spans = _find_spans(windows, scope, max_answer_len, align_to_words)
    if handle_impossible:
        # no answer needs every window to say so: the least sure window decides
        null = min(nulls, key=lambda pair: float(pair.sum()))
        scope.append(null[None])
        spans.append(_Span(float(null.sum()), 0, 0))
    log_z = float(torch.cat(scope).logsumexp(0).sum())
    by_place: dict[tuple[int, int], float] = {}
    for span in sorted(spans, key=lambda s: -s.logit):
        # different token spans inside the same words are one answer; the best of them gives the score
        by_place.setdefault((span.start, span.end), math.exp(span.logit - log_z))
        if len(by_place) == top_k:
            break
    return [Answer(context[start:end], score, start, end) for (start, end), score in by_place.items()]


def _find_spans(
    windows: Sequence[Window], logits: Sequence[torch.Tensor], max_answer_len: int, align_to_words: bool
) -> list[_Span]:
    """Spans of all windows, at least one; ``logits`` are ``(context tokens, 2)`` for each window."""
    shown = max_context(windows)
    spans: list[_Span] = []
    for pairs_of in (_likely_pairs, _all_pairs):
        for window, inside, shown_best in zip(windows, logits, shown, strict=True):
            spans += _place_spans(window, pairs_of(inside, shown_best, max_answer_len), align_to_words)
        if spans:
            break
    return spans


def _likely_pairs(inside: torch.Tensor, shown_best: list[bool], max_answer_len: int) -> list[tuple[int, int, float]]:
    """(start, end, logit) of all spans among the N best starts and ends; ``inside`` is ``(context tokens, 2)``."""
    keep = min(N_BEST, len(inside))
    starts = inside[:, 0].topk(keep)
    ends = inside[:, 1].topk(keep)
    return [
        (start, end, start_logit + end_logit)
        for start, start_logit in zip(starts.indices.tolist(), starts.values.tolist(), strict=True)
        for end, end_logit in zip(ends.indices.tolist(), ends.values.tolist(), strict=True)
        if shown_best[start] and start <= end < start + max_answer_len
    ]


def _all_pairs(inside: torch.Tensor, shown_best: list[bool], max_answer_len: int) -> list[tuple[int, int, float]]:
    """(start, end, logit) of the N best of all spans; ``inside`` is ``(context tokens, 2)``."""
    fits = torch.ones(len(inside), len(inside), dtype=torch.bool).triu().tril(min(max_answer_len, len(inside)) - 1)
    starts, ends = (fits & torch.tensor(shown_best)[:, None]).nonzero(as_tuple=True)  # (spans,) each
    sums = inside[starts, 0] + inside[ends, 1]
    best = sums.topk(min(N_BEST, len(sums))).indices
    return list(zip(starts[best].tolist(), ends[best].tolist(), sums[best].tolist(), strict=True))


def _place_spans(window: Window, pairs: list[tuple[int, int, float]], align_to_words: bool) -> list[_Span]:
    """Spans of context tokens, counted from the window's first, as spans of the text."""
    places = window.words if align_to_words else window.offsets
    found: list[_Span] = []
    for start, end, logit in pairs:
        left, right = places[window.context_start + start], places[window.context_start + end]
        assert left is not None  # context tokens always have a place
        assert right is not None
        found.append(_Span(logit, left[0], right[1]))
    return found
