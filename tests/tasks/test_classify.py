from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from q8core.errors import InputError
from q8core.tasks.classify import Side, encode_text, encode_texts, postprocess
from q8core.tokenizer import first_ids, last_ids, load_tokenizer

TEXTS = st.text(alphabet=st.sampled_from(list("abcd ef.é🙂中")), max_size=60)


# transformers takes an empty second text for none at all; here it stays a pair
@given(
    text=TEXTS, pair=st.none() | TEXTS.filter(bool), length=st.integers(5, 40), side=st.sampled_from(["left", "right"])
)
def test_encoding_equals_hugging_face(
    tiny_classifier: Path, text: str, pair: str | None, length: int, side: Any
) -> None:
    ours = encode_text(load_tokenizer(tiny_classifier), text, pair, length, side)
    tokenizer = BertTokenizerFast.from_pretrained(tiny_classifier, truncation_side=side)
    whole = tokenizer(text, pair)
    cut = tokenizer(text, pair, max_length=length, truncation=True)
    assert len(ours.input_ids) == len(cut["input_ids"])
    assert ours.truncated == (len(whole["input_ids"]) > length)
    if not ours.truncated or pair is None:
        assert (ours.input_ids, ours.token_type_ids) == (cut["input_ids"], cut["token_type_ids"])
    assert len(ours.input_ids) == len(ours.token_type_ids)


def test_a_pair_loses_tokens_of_its_longer_side(tiny_classifier: Path) -> None:
    tokenizer = load_tokenizer(tiny_classifier)
    encoded = encode_text(tokenizer, "the cat", "dog " * 30, 12)
    assert encoded.token_type_ids == [0] * 4 + [1] * 8
    encoded = encode_text(tokenizer, "dog " * 30, "the cat", 12)
    assert encoded.token_type_ids == [0] * 9 + [1] * 3


@given(texts=st.tuples(*[st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=40)] * 2))
def test_of_a_pair_both_texts_lose_their_beginnings(tiny_classifier: Path, texts: tuple[list[str], list[str]]) -> None:
    """With room for an even number of tokens, which Hugging Face shares between two long texts as BERT does."""
    text, pair = (" ".join(words) for words in texts)
    tokenizer = BertTokenizerFast.from_pretrained(tiny_classifier, truncation_side="left")
    expected = tokenizer(text, pair, max_length=15, truncation=True)
    ours = encode_text(load_tokenizer(tiny_classifier), text, pair, 15, "left")
    assert (ours.input_ids, ours.token_type_ids) == (expected["input_ids"], expected["token_type_ids"])


# pieces of which the tokenizer makes any number of tokens, none among them
PIECES = (
    "good ",
    "film",
    " ",
    "  ",
    "été",
    "\u0301",
    "中文",
    "\u200d",
    ".",
    "a ",
    "zq9",
    "x" * 120 + " ",
    "\n",
    " 1",
    " _",
)


@given(
    texts=st.lists(st.lists(st.sampled_from(PIECES), min_size=40, max_size=120).map("".join), min_size=1, max_size=2),
    length=st.integers(5, 6),
)
def test_what_is_cut_off_decides_nothing(tiny_classifier: Path, texts: list[str], length: int) -> None:
    """Long texts are not tokenized as a whole: their first and last ids are those of the whole text."""
    tokenizer = load_tokenizer(tiny_classifier)
    whole = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    for text, all_of_them in zip(texts, whole, strict=True):
        first, last = first_ids(tokenizer, [text], length)[0], last_ids(tokenizer, [text], length)[0]
        assert first == all_of_them[: len(first)]
        assert last == all_of_them[len(all_of_them) - len(last) :]
        for few in (first, last):
            assert len(few) > length or few == all_of_them
    for side in ("left", "right"):
        encoded = encode_text(tokenizer, texts[0], texts[1] if len(texts) == 2 else None, length, side)
        assert encoded.truncated == (sum(map(len, whole)) + len(texts) + 1 > length)


def test_a_long_text_is_not_tokenized_to_the_end(tiny_classifier: Path) -> None:
    tokenizer = load_tokenizer(tiny_classifier)
    assert len(first_ids(tokenizer, ["a good film " * 10_000], 128)[0]) == 129
    assert len(last_ids(tokenizer, ["a good film " * 10_000], 128)[0]) == 129


def test_scores_equal_torch_and_are_sorted() -> None:
    logits = torch.tensor([[0.1, 2.0, -1.0], [20.0, 20.0, 30.0], [-900.0, -900.0, 900.0]])
    orders = [[1, 0, 2], [2, 0, 1], [2, 0, 1]]  # equal ones in the order of the labels
    for function, expected in (("softmax", logits.softmax(-1)), ("sigmoid", logits.sigmoid()), ("none", logits)):
        for top_k in (None, 2):
            for row, scores, order in zip(
                postprocess(logits.numpy(), "abc", function, top_k), expected, orders, strict=True
            ):
                assert [s.label for s in row] == ["abc"[place] for place in order[:top_k]]
                assert [s.score for s in row] == pytest.approx(scores[order[:top_k]].tolist())


def test_too_little_room_is_an_error(tiny_classifier: Path) -> None:
    with pytest.raises(InputError, match="no room"):
        encode_text(load_tokenizer(tiny_classifier), "a", "b", 4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_list_is_encoded_as_its_inputs_are(tiny_classifier: Path, side: Side) -> None:
    tokenizer = load_tokenizer(tiny_classifier)
    items = [("a film", None), ("the cat", "dog " * 30), ("", None), ("dog " * 5000, "a"), ("film " * 90, None)]
    alone = [encode_text(tokenizer, text, pair, 12, side) for text, pair in items]
    assert encode_texts(tokenizer, items, 12, side) == alone
    assert [one.truncated for one in alone] == [False, True, False, True, True]
