from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from q8core.errors import InputError
from q8core.tasks.qa import Window, best_answers, encode_windows
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
    torch.manual_seed(seed)
    logits = [torch.randn(len(w.input_ids), 2) * 4 for w in windows]
    answers = best_answers(windows, logits, context, top_k=5)
    assert answers
    assert all(context[a.start : a.end] == a.answer and a.answer for a in answers)
    assert [a.score for a in answers] == sorted((a.score for a in answers), reverse=True)
    assert len({(a.start, a.end) for a in answers}) == len(answers)
    assert all(0 < a.score <= 1 for a in answers)


def brute_force(windows: list[Window], logits: list[torch.Tensor], max_len: int) -> tuple[float, int, int]:
    """Every span of every window, its probability under one softmax over all context tokens."""
    starts, ends = [], []
    for window, table in zip(windows, logits, strict=True):
        for i, place in enumerate(window.offsets):
            if place is not None:
                starts.append(math.exp(float(table[i, 0])))
                ends.append(math.exp(float(table[i, 1])))
    best = (0.0, 0, 0)
    for window, table in zip(windows, logits, strict=True):
        for i, left in enumerate(window.offsets):
            for j, right in enumerate(window.offsets[i : i + max_len], start=i):
                if left is not None and right is not None:
                    p = math.exp(float(table[i, 0])) / sum(starts) * math.exp(float(table[j, 1])) / sum(ends)
                    if p > best[0]:
                        best = (p, left[0], right[1])
    return best


@pytest.mark.parametrize("seed", range(8))
def test_the_best_span_is_that_of_brute_force(tiny_qa: Path, seed: int) -> None:
    # short enough for one window, where no token has a better window elsewhere
    context = "the tower was built in paris by a very good actor in the year one"
    windows = encode_windows(load_tokenizer(tiny_qa), "who?", context, 64, 8)
    assert len(windows) == 1
    torch.manual_seed(seed)
    logits = [torch.randn(len(w.input_ids), 2) * 3 for w in windows]
    answer = best_answers(windows, logits, context, max_answer_len=6, align_to_words=False)[0]
    probability, start, end = brute_force(windows, logits, 6)
    assert (answer.start, answer.end) == (start, end)
    assert answer.score == pytest.approx(probability, rel=1e-6)


@pytest.mark.parametrize("longest", [1, 4, 15])
def test_the_best_span_is_found_where_the_best_starts_and_ends_do_not_pair(tiny_qa: Path, longest: int) -> None:
    context = "the cat sat on the mat " * 10
    windows = encode_windows(load_tokenizer(tiny_qa), "who?", context, 128)
    assert len(windows) == 1
    torch.manual_seed(longest)
    table = torch.randn(len(windows[0].input_ids), 2)
    first = windows[0].context_start
    table[first : first + 20, 1] += 20  # the best ends come before
    table[-21:-1, 0] += 20  # all the best starts
    answers = best_answers(windows, [table], context, top_k=3, max_answer_len=longest, align_to_words=False)
    probability, start, end = brute_force(windows, [table], longest)
    assert (answers[0].start, answers[0].end) == (start, end)
    assert answers[0].score == pytest.approx(probability, rel=1e-6)
    assert len({(a.start, a.end) for a in answers}) == 3
    assert best_answers(windows, [table], context, max_answer_len=10**30)  # any number that JSON holds
    table[0] = 50
    either = best_answers(windows, [table], context, top_k=2, max_answer_len=longest, handle_impossible=True)
    assert either[0].answer == "" != either[1].answer


def test_a_span_grows_to_whole_words(tiny_qa: Path) -> None:
    context = "xyzq sat."
    windows = encode_windows(load_tokenizer(tiny_qa), "who?", context)
    table = torch.full((len(windows[0].input_ids), 2), -5.0)
    second_piece = windows[0].context_start + 1
    table[second_piece] = 5.0
    assert best_answers(windows, [table], context, align_to_words=False)[0].answer == "y"
    assert best_answers(windows, [table], context)[0].answer == "xyzq"


def test_no_answer_competes_with_spans(tiny_qa: Path) -> None:
    context = "the cat sat on the mat"
    windows = encode_windows(load_tokenizer(tiny_qa), "who?", context)
    table = torch.zeros(len(windows[0].input_ids), 2)
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
