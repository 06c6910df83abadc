"""Where a text may be cut before it is tokenized, for each kind of tokenizer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from q8core.tokenizer import first_ids, last_ids
from q8core.words import WORD, splits_at_words
from service.queueing.token_bounds import least_tokens
from tests import tokenizer_folders as small

ANY = 10**9
PIECES = [
    *(
        "good ",
        "film",
        " ",
        "  ",
        "été",
        "\u0301",
        "中文",
        "\u200d",
        "\u0600",
        "👩",
        ".",
        "a ",
        "zq9",
        "\n",
        " 1",
        "'s ",
        " x",
    ),
    *("Ġ", "▁", "\u00a0", "<mask>", " <mask> ", "[L]", "[R] ", "NewY", " San", "\x00", "ab" * 30),
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text(max_size=30)


def with_pre_tokenizer(make: Callable[[], Tokenizer], part: pre_tokenizers.PreTokenizer) -> Tokenizer:
    made = make()
    made.pre_tokenizer = part
    return made


def with_normalizer(make: Callable[[], Tokenizer], *parts: normalizers.Normalizer) -> Tokenizer:
    made = make()
    made.normalizer = normalizers.Sequence([*parts])
    return made


def with_token(make: Callable[[], Tokenizer], *tokens: AddedToken) -> Tokenizer:
    made = make()
    made.add_tokens([*tokens])
    return made


def metaspace(scheme: str) -> Tokenizer:
    return with_pre_tokenizer(small.xlm_roberta, pre_tokenizers.Metaspace(prepend_scheme=scheme))  # pyright: ignore


def unknown_bpe() -> Tokenizer:
    made = Tokenizer(models.BPE({"<unk>": 0, "a": 1, "b": 2}, [], unk_token="<unk>", fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


SPLIT = {
    "WordPiece": small.mpnet(),
    "bytes": small.roberta(),
    "bytes after a space": small.roberta(add_prefix_space=True),
    "Unigram": small.xlm_roberta(),
    "Unigram, never a space": small.xlm_roberta("never"),
    "Unigram, first a space": small.xlm_roberta("first"),
    "Metaspace always": metaspace("always"),
    "Metaspace first": metaspace("first"),
    "Metaspace never": metaspace("never"),
    "BPE with an unknown token": unknown_bpe(),
    "NFKC": with_normalizer(small.roberta, normalizers.NFKC(), normalizers.Lowercase()),
    "without accents": with_normalizer(small.xlm_roberta, normalizers.NFD(), normalizers.StripAccents()),
    "tokens": with_token(
        small.roberta, AddedToken("[L]", lstrip=True), AddedToken("NewY"), AddedToken("San", single_word=True)
    ),
    "tokens that take spaces where they do not count": with_token(
        small.mpnet, AddedToken("[R]", rstrip=True), AddedToken("NewY", lstrip=True, rstrip=True)
    ),
}
WHOLE = {
    "spaces are ordinary": with_pre_tokenizer(small.roberta, pre_tokenizers.ByteLevel(use_regex=False)),
    "nothing is split": with_pre_tokenizer(small.xlm_roberta, pre_tokenizers.Metaspace(split=False)),
    "a pattern": with_pre_tokenizer(small.xlm_roberta, pre_tokenizers.Split(Regex("[a-z] [a-z]"), "isolated")),
    "ends are stripped": with_normalizer(small.roberta, normalizers.Strip()),
    "replaced": with_normalizer(small.xlm_roberta, normalizers.Replace(Regex(" {2,}"), "▁")),
    "a word that takes spaces": with_token(small.roberta, AddedToken("NewY", lstrip=True)),
    "a token that takes a space": with_token(small.roberta, AddedToken("[R]", rstrip=True)),
    "a token of two words": with_token(small.mpnet, AddedToken("a good")),
    "a token of two words once normalized": with_token(small.mpnet, AddedToken("中good")),
    "no token for some letters": with_pre_tokenizer(
        lambda: Tokenizer(models.BPE({"a": 0, "b": 1}, [])), pre_tokenizers.Whitespace()
    ),
}


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def cut_alike(tokenizer: Tokenizer, text: str) -> bool:
    """Whether before each word a text may be cut with its space, and has a token for each."""
    whole, words = ids_of(tokenizer, text), [found.start() for found in WORD.finditer(text)]
    parts = (
        ids_of(tokenizer, text[: start - 1]) + ids_of(tokenizer, text[start - 1 :]) for start in words if start > 0
    )
    return len(whole) >= len(words) and all(ids == whole for ids in parts)


@pytest.mark.parametrize("kind", SPLIT)
def test_these_split_at_words(kind: str) -> None:
    assert splits_at_words(SPLIT[kind])


@pytest.mark.parametrize("kind", SPLIT)
@settings(deadline=None)
@given(text=TEXTS)
@example("a  b \n c\t d 'll e1 <mask> f[L] g NewY h  San i")
@example("[R] good film [R]  a")
def test_words_are_tokens_of_their_own(kind: str, text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    assert cut_alike(SPLIT[kind], text)
    assert least_tokens(SPLIT[kind], text, ANY) <= len(ids_of(SPLIT[kind], text))


@pytest.mark.parametrize("kind", SPLIT)
@settings(max_examples=30, deadline=None)
@given(text=st.lists(st.sampled_from(PIECES), min_size=30, max_size=120).map("".join), enough=st.integers(1, 4))
def test_the_first_and_last_ids_are_those_of_the_whole_text(kind: str, text: str, enough: int) -> None:
    tokenizer, whole = SPLIT[kind], ids_of(SPLIT[kind], text)
    first, last = first_ids(tokenizer, [text], enough)[0], last_ids(tokenizer, [text], enough)[0]
    assert first == whole[: len(first)]
    assert last == whole[len(whole) - len(last) :]
    for few in (first, last):
        assert len(few) > enough or few == whole


@pytest.mark.parametrize("kind", SPLIT)
def test_a_long_text_is_not_tokenized_to_the_end(kind: str) -> None:
    text = "a good film " * 1000
    assert 9 <= len(first_ids(SPLIT[kind], [text], 8)[0]) < 100
    assert 9 <= len(last_ids(SPLIT[kind], [text], 8)[0]) < 100


# for each of the others a text that shows why
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("spaces are ordinary", None),
        ("nothing is split", None),
        ("a pattern", None),
        ("ends are stripped", "a   b"),
        ("replaced", None),
        ("a word that takes spaces", "a   NewY"),
        ("a token that takes a space", "[R] good film"),
        ("a token of two words", "a good film"),
        ("a token of two words once normalized", None),
        ("no token for some letters", "z z z"),
    ],
)
def test_of_others_the_whole_text_is_tokenized(kind: str, text: str | None) -> None:
    tokenizer, long = WHOLE[kind], "ab a " * 300
    assert not splits_at_words(tokenizer)
    assert text is None or not cut_alike(tokenizer, text)
    assert least_tokens(tokenizer, long, ANY) == 0
    assert first_ids(tokenizer, [long], 3)[0] == last_ids(tokenizer, [long], 3)[0] == ids_of(tokenizer, long)
