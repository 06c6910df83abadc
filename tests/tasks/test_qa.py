from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from q8core.arrays import Logits
from q8core.errors import InputError
from q8core.tasks.qa import Answer, Window, best_answers, encode_windows
from q8core.tokenizer import load_tokenizer

TEXTS = st.text(
    alphabet=st.sampled_from(list("abcdefgh .,é\u0301🙂👩\u200d🚀中文ÄS\n")), min_size=1, max_size=120
).filter(lambda text: any(c.isalnum() for c in text))


@settings(max_examples=60)
@given(context=TEXTS, stride=st.integers(0, 30))
def test_windows_equal_those_of_hugging_face(tiny_qa: Path, context: str, stride: int) -> None:
    tokenizer = load_tokenizer(tiny_qa)
    windows = encode_windows(tokenizer, "who built it?", context, 48, stride)
    oracle = BertTokenizerFast.from_pretrained(tiny_qa)(
        "who built it?",
        context,
        max_length=48,
        stride=stride,
        truncation="only_second",
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    assert [w.input_ids for w in windows] == oracle["input_ids"]
    assert [w.token_type_ids for w in windows] == oracle["token_type_ids"]
    for index, window in enumerate(windows):
        inside = [
            tuple(place) if sequence == 1 else None
            for place, sequence in zip(oracle["offset_mapping"][index], oracle.sequence_ids(index), strict=True)
        ]
        assert window.offsets == inside


@settings(max_examples=60)
@given(context=TEXTS, length=st.integers(9, 40), stride=st.integers(0, 200))
def test_windows_show_all_and_are_few_at_any_stride(tiny_qa: Path, context: str, length: int, stride: int) -> None:
    tokenizer = load_tokenizer(tiny_qa)
    tokens, room = len(tokenizer.encode(context, add_special_tokens=False).ids), length - 4
    windows = encode_windows(tokenizer, "who", context, length, stride)
    shown = {w.first_token + i for w in windows for i in range(len(w.input_ids) - 1 - w.context_start)}
    assert shown == set(range(tokens))
    if stride >= room:
        assert len(windows) <= 1 + math.ceil(2 * tokens / room)
    for one, following in itertools.pairwise(windows):
        assert one.first_token + room - following.first_token == (stride if stride < room else room // 2)


@settings(max_examples=60)
@given(context=TEXTS, seed=st.integers(0, 1000))
def test_answers_are_pieces_of_the_context_in_code_points(tiny_qa: Path, context: str, seed: int) -> None:
    windows = encode_windows(load_tokenizer(tiny_qa), "who?", context, 24, 4)
    logits = random_logits(windows, seed, 4)
    answers = best_answers(windows, logits, context, top_k=5)
    assert answers
    assert all(context[a.start : a.end] == a.answer and a.answer for a in answers)
    assert [a.score for a in answers] == sorted((a.score for a in answers), reverse=True)
    assert len({(a.start, a.end) for a in answers}) == len(answers)
    assert all(0 < a.score <= 1 for a in answers)


Found = list[tuple[float, int, int]]


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def text_place(window: Window, i: int, j: int, *, words: bool) -> tuple[int, int]:
    places = window.words if words else window.offsets
    left, right = places[i], places[j]
    assert left is not None
    assert right is not None
    return left[0], right[1]


def ranked(spans: list[tuple[float, tuple[int, int]]]) -> Found:
    """The best of the spans at each place, best first."""
    best: dict[tuple[int, int], float] = {}
    for score, place in spans:
        best[place] = max(score, best.get(place, 0.0))
    return sorted(((score, *place) for place, score in best.items()), reverse=True)


def pipeline(window: Window, table: Logits, longest: int, *, words: bool, impossible: bool) -> Found:
    """Hugging Face's pipeline on one window: masked logits, two softmaxes, the band of their outer product."""
    candidate = np.array([place is not None for place in window.offsets])
    candidate[0] = True
    masked = np.where(candidate[:, None], table.astype(np.float64), -10000.0)
    starts, ends = softmax(masked[:, 0]), softmax(masked[:, 1])
    null = starts[0] * ends[0]
    starts[0] = ends[0] = 0
    band = np.tril(np.triu(np.outer(starts, ends)), min(longest, len(starts)) - 1)
    spans = [(float(band[i, j]), text_place(window, i, j, words=words)) for i, j in zip(*band.nonzero(), strict=True)]
    return ranked([*spans, (float(null), (0, 0))] if impossible else spans)


def shared(windows: list[Window], logits: list[Logits], longest: int, *, words: bool, impossible: bool) -> Found:
    """Span by span: one softmax over the context tokens of all windows and the least sure window's first token."""
    tables = [table.astype(np.float64) for table in logits]
    null = min((table[0] for table in tables), key=lambda pair: pair[0] + pair[1])
    inside = [[i for i, place in enumerate(window.offsets) if place is not None] for window in windows]
    rows = np.concatenate([null[None], *[table[tokens] for table, tokens in zip(tables, inside, strict=True)]])
    sum_start, sum_end = np.exp(rows).sum(0)

    def fit(index: int, token: int) -> float:
        own = inside[index]
        begin = windows[index].first_token
        if not begin <= token < begin + len(own):
            return -1.0
        return min(token - begin, begin + len(own) - 1 - token) + 0.01 * len(own)

    spans: list[tuple[float, tuple[int, int]]] = []
    for index, (window, table, own) in enumerate(zip(windows, tables, inside, strict=True)):
        for i in own:
            fits = [fit(other, window.first_token + i - own[0]) for other in range(len(windows))]
            for j in range(i, min(own[-1] + 1, i + longest)) if fits.index(max(fits)) == index else ():
                score = float(np.exp(table[i, 0]) / sum_start * np.exp(table[j, 1]) / sum_end)
                spans.append((score, text_place(window, i, j, words=words)))
    return ranked([*spans, (float(np.exp(null.sum()) / sum_start / sum_end), (0, 0))] if impossible else spans)


def random_logits(windows: list[Window], seed: int, scale: float) -> list[Logits]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal((len(w.input_ids), 2), np.float32) * np.float32(scale) for w in windows]


def check(answers: list[Answer], context: str, expected: Found) -> None:
    assert [(a.start, a.end) for a in answers] == [(start, end) for _, start, end in expected]
    assert [a.score for a in answers] == pytest.approx([score for score, _, _ in expected], rel=1e-9)
    assert [a.answer for a in answers] == [context[start:end] for _, start, end in expected]


LONGEST = st.sampled_from([1, 2, 5, 15, 1000])
SEEDS = st.integers(0, 10_000)
SCALES = st.sampled_from([0.3, 1.0, 4.0])
FLAGS = st.booleans()


@settings(max_examples=150, deadline=None)
@given(TEXTS, SEEDS, SCALES, LONGEST, FLAGS, FLAGS, st.integers(1, 20))
def test_one_windows_answers_are_those_of_hugging_faces_pipeline(
    tiny_qa: Path, context: str, seed: int, scale: float, longest: int, words: bool, impossible: bool, top_k: int
) -> None:
    windows = encode_windows(load_tokenizer(tiny_qa), "who?", context, 256)
    assert len(windows) == 1
    logits = random_logits(windows, seed, scale)
    answers = best_answers(windows, logits, context, top_k, longest, impossible, words)
    check(answers, context, pipeline(windows[0], logits[0], longest, words=words, impossible=impossible)[:top_k])


@settings(max_examples=100, deadline=None)
@given(TEXTS, SEEDS, SCALES, LONGEST, FLAGS, FLAGS, st.integers(1, 20))
@example("the cat sat on the mat, " * 4, 0, 1.0, 15, False, True, 20)
@example("abcd efgh " * 10, 1, 1.0, 15, True, False, 20)
def test_several_windows_answers_are_those_of_one_softmax_over_all(
    tiny_qa: Path, context: str, seed: int, scale: float, longest: int, words: bool, impossible: bool, top_k: int
) -> None:
    windows = encode_windows(load_tokenizer(tiny_qa), "who?", context, 16, 5)
    logits = random_logits(windows, seed, scale)
    answers = best_answers(windows, logits, context, top_k, longest, impossible, words)
    check(answers, context, shared(windows, logits, longest, words=words, impossible=impossible)[:top_k])


@settings(max_examples=60, deadline=None)
@given(TEXTS, SEEDS, st.sampled_from([16, 128]), FLAGS)
def test_flags_say_which_spans_count_and_change_no_score(
    tiny_qa: Path, context: str, seed: int, length: int, words: bool
) -> None:
    windows = encode_windows(load_tokenizer(tiny_qa), "who?", context, length, 5)
    logits = [table.round() for table in random_logits(windows, seed, 3.0)]  # many equal sums
    many = best_answers(windows, logits, context, top_k=1000, align_to_words=words)
    for top_k in (1, 2, 20):
        assert best_answers(windows, logits, context, top_k=top_k, align_to_words=words) == many[:top_k]
    either = best_answers(windows, logits, context, top_k=1000, handle_impossible=True, align_to_words=words)
    assert [a for a in either if a.answer] == many
    of_place = {(a.start, a.end): a.score for a in many}
    for answer in best_answers(windows, logits, context, top_k=1000, max_answer_len=3, align_to_words=words):
        assert answer.score <= of_place[answer.start, answer.end]  # of the best token span at that place
        assert words or answer.score == of_place[answer.start, answer.end]


@pytest.mark.parametrize("longest", [1, 4, 15])
def test_the_best_span_is_found_where_the_best_starts_and_ends_do_not_pair(tiny_qa: Path, longest: int) -> None:
    context = "the cat sat on the mat " * 10
    windows = encode_windows(load_tokenizer(tiny_qa), "who?", context, 128)
    assert len(windows) == 1
    (table,) = random_logits(windows, longest, 1)
    first = windows[0].context_start
    table[first : first + 20, 1] += 20  # the best ends come before
    table[-21:-1, 0] += 20  # all the best starts
    answers = best_answers(windows, [table], context, top_k=3, max_answer_len=longest, align_to_words=False)
    check(answers, context, pipeline(windows[0], table, longest, words=False, impossible=False)[:3])
    assert best_answers(windows, [table], context, max_answer_len=10**30)  # any number that JSON holds


@pytest.mark.parametrize("top_k", [1, 2, 3, 20])
def test_one_long_words_spans_leave_room_for_other_answers(tiny_qa: Path, top_k: int) -> None:
    context = "qxzqxzqxzqxzqxzqxzqxzqxzqxzqxz " + "cat " * 30  # all spans of the first word are one place
    windows = encode_windows(load_tokenizer(tiny_qa), "who?", context, 128)
    (table,) = random_logits(windows, 0, 1)
    table[windows[0].context_start : windows[0].context_start + 30] += 30
    answers = best_answers(windows, [table], context, top_k=top_k, max_answer_len=30)
    assert len(answers) == top_k
    check(answers, context, pipeline(windows[0], table, 30, words=True, impossible=False)[:top_k])


@pytest.mark.parametrize("impossible", [False, True])
def test_a_question_that_the_context_does_not_answer_scores_low(tiny_qa: Path, impossible: bool) -> None:
    context = "the cat sat on the mat"
    windows = encode_windows(load_tokenizer(tiny_qa), "who?", context)
    table = np.zeros((len(windows[0].input_ids), 2), np.float32)
    table[0] = 9.0
    spans = [a for a in best_answers(windows, [table], context, 2, handle_impossible=impossible) if a.answer]
    assert spans[0].score == pytest.approx((1 / (math.exp(9) + 6)) ** 2, rel=1e-12)


def test_a_span_grows_to_whole_words(tiny_qa: Path) -> None:
    context = "xyzq sat."
    windows = encode_windows(load_tokenizer(tiny_qa), "who?", context)
    table = np.full((len(windows[0].input_ids), 2), -5, np.float32)
    second_piece = windows[0].context_start + 1
    table[second_piece] = 5.0
    assert best_answers(windows, [table], context, align_to_words=False)[0].answer == "y"
    assert best_answers(windows, [table], context)[0].answer == "xyzq"


def test_no_answer_competes_with_spans(tiny_qa: Path) -> None:
    context = "the cat sat on the mat"
    windows = encode_windows(load_tokenizer(tiny_qa), "who?", context)
    table = np.zeros((len(windows[0].input_ids), 2), np.float32)
    table[0] = 9.0
    best = best_answers(windows, [table], context, top_k=2, handle_impossible=True)
    assert (best[0].answer, best[0].start, best[0].end) == ("", 0, 0)
    assert best[0].score > 0.9 > best[1].score
    table[0] = -9.0
    assert best_answers(windows, [table], context, handle_impossible=True)[0].answer


@pytest.mark.parametrize(
    ("question", "context", "length", "message"),
    [
        (" ", "text", 64, "question is empty"),
        ("who?", "\n", 64, "context is empty"),
        ("who was in the house?", "text", 8, "leaves no room"),
        ("who?", "\u200b", 64, "no token"),
    ],
)
def test_impossible_inputs_are_named(tiny_qa: Path, question: str, context: str, length: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode_windows(load_tokenizer(tiny_qa), question, context, length)
