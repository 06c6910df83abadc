"""What is proven about a text's tokens without tokenizing it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from q8core.tokenizer import load_tokenizer
from service.models.registry import BUNDLED, ModelRegistry
from service.queueing import token_bounds
from service.queueing.token_bounds import least_tokens, most_proven
from service.tasks import schemas
from service.tasks.encoding import ClassifyWork, QAWork
from tests.service.conftest import open_registry

ANY = 10**9
words = st.text(st.sampled_from("ab9Zé.,!  \n\t\x00\x1c\u00a0\u0301\u200b中😀[]MASK#")) | st.text()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(BUNDLED / "sst2-minilm-l6")


@given(words)
def test_never_more_than_the_tokens(tokenizer: Tokenizer, text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    assert least_tokens(tokenizer, text, ANY) <= len(tokenizer.encode(text, add_special_tokens=False).ids)


@given(words)
def test_never_more_than_the_characters_promise(tokenizer: Tokenizer, text: str) -> None:
    assert least_tokens(tokenizer, text, ANY) <= most_proven(len(text))


def test_plain_words_are_counted(tokenizer: Tokenizer) -> None:
    assert least_tokens(tokenizer, "a gripping,  funny film of 1994", ANY) == 6


@given(st.text(st.sampled_from("a  b")), st.integers(1, 9))
def test_pieces_change_nothing(tokenizer: Tokenizer, text: str, piece: int) -> None:
    whole = least_tokens(tokenizer, text, ANY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_bounds, "_PIECE", piece)
        assert least_tokens(tokenizer, text, ANY) == whole
        assert least_tokens(tokenizer, text, 1) == min(whole, least_tokens(tokenizer, text, 1))


@pytest.fixture(scope="module")
def registry(classify_folder: Path, qa_folder: Path) -> ModelRegistry:
    return open_registry(classify_folder, qa_folder)


texts = st.text(st.sampled_from("ab  .é"), max_size=200)


@given(st.lists(st.tuples(texts, st.none() | texts), min_size=1, max_size=4))
def test_bound_of_a_classification(registry: ModelRegistry, items: list[tuple[str, str | None]]) -> None:
    work = ClassifyWork(registry.models["tiny-classify"], items, schemas.ClassifyParameters())
    tokens = sum(item.tokens for item in work.encode().items)
    assert work.least_tokens(ANY) <= tokens
    assert work.characters == sum(len(a) + len(b or "") for a, b in items)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=3), st.integers(1, 20))
def test_bound_of_questions(registry: ModelRegistry, items: list[tuple[str, str]], longest: int) -> None:
    inputs = [schemas.QAInput(question=f"a {question}", context=f"b {context}") for question, context in items]
    parameters = schemas.QAParameters(max_question_len=longest)
    work = QAWork(registry.models["tiny-qa"], inputs, parameters, listed=True, max_tokens=ANY)
    assert work.least_tokens(ANY) <= sum(item.tokens for item in work.encode().items)
    assert work.least_tokens(5) >= 5
