"""Files in SQuAD's layout that are not SQuAD v1.1: every refusal names the file, the place, and the question's id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from q8core.errors import InputError
from q8core.tasks.squad import read_squad

CONTEXT = "the tower was built in paris. the cat was red. the dog was blue."
CAT: dict[str, Any] = {"text": "cat", "answer_start": 34}
MISSING = object()


def question(**changes: Any) -> dict[str, Any]:
    found = {"id": "e", "question": "what was red", "answers": [CAT], **changes}
    return {name: value for name, value in found.items() if value is not MISSING}


def write(folder: Path, asked: object, context: object = CONTEXT) -> Path:
    """A good article, and one whose second paragraph has the question under test in the third place."""
    first, second = [[question(id=f"{letter}{n}") for n in range(2)] for letter in "ab"]
    paragraphs = [{"context": CONTEXT, "qas": first}, {"context": context, "qas": [*second, asked]}]
    article = {"title": "\ud83d", "paragraphs": [{"context": CONTEXT, "qas": []}]}
    (folder / "own.json").write_text(json.dumps({"data": [article, {"paragraphs": paragraphs}]}))
    return folder / "own.json"


def refusal(file: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_squad(file)
    message = str(caught.value)
    assert message.startswith(str(file))
    assert "\n" not in message
    return message.removeprefix(str(file))


def answer(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**CAT, **changes}.items() if value is not MISSING}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"answers": [answer(text="", answer_start=0)]}, "answers[0].text is empty"),
        ({"answers": [answer(text="", answer_start=-1)]}, "answers[0].text is empty"),
        ({"answers": [answer(text=" \t", answer_start=3)]}, "answers[0].text is blank"),
        ({"answers": [answer(text="", answer_start=0), CAT]}, "answers[0].text is empty"),
        ({"answers": [CAT, answer(text="\u00a0")]}, "answers[1].text is blank"),
        ({"answers": []}, "answers is an empty list; only SQuAD v1.1"),
        ({"answers": MISSING}, "answers is missing"),
        ({"answers": None}, "answers is null; allowed: a list"),
        ({"answers": ["cat"]}, "answers[0] is 'cat'; allowed: an object"),
        ({"answers": {"text": ["cat"], "answer_start": [34]}}, "not an object of lists as Hugging Face writes it"),
        ({"is_impossible": True}, "is_impossible is true; only SQuAD v1.1"),
        ({"is_impossible": True, "answers": [], "plausible_answers": [CAT]}, "is_impossible is true; only SQuAD v1.1"),
        ({"is_impossible": "false"}, "is_impossible is 'false'; allowed: true or false"),
        ({"is_impossible": 0}, "is_impossible is 0; allowed: true or false"),
        ({"answers": [answer(answer_start=MISSING)]}, "answers[0].answer_start is missing"),
        ({"answers": [answer(answer_start=None)]}, "answers[0].answer_start is null; allowed: a whole number"),
        ({"answers": [answer(answer_start="34")]}, "answers[0].answer_start is '34'; allowed: a whole number"),
        ({"answers": [answer(answer_start=34.5)]}, "answers[0].answer_start is 34.5; allowed: a whole number"),
        ({"answers": [answer(answer_start=True)]}, "answers[0].answer_start is true; allowed: a whole number"),
        ({"answers": [answer(answer_start=-1)]}, "answers[0].answer_start is -1; allowed: 0 to 63"),
        ({"answers": [answer(answer_start=64)]}, "answers[0].answer_start is 64; allowed: 0 to 63"),
        ({"answers": [CAT, answer(answer_start=10**40)]}, "answers[1].answer_start is 1000"),
        ({"answers": [answer(text="cow")]}, "answers[0].text is 'cow', which is not in its context"),
        ({"answers": [CAT, answer(text="Cat")]}, "answers[1].text is 'Cat', which is not in its context"),
        ({"answers": [answer(text=34)]}, "answers[0].text is 34; allowed: a text"),
        ({"answers": [answer(text="c\ud83d")]}, "answers[0].text holds half a surrogate pair"),
        ({"question": ""}, "question is empty"),
        ({"question": "\n "}, "question is blank"),
        ({"question": MISSING}, "question is missing"),
        ({"question": ["what"]}, "question is ['what']; allowed: a text"),
        ({"question": "half \udc00 pair"}, "question holds half a surrogate pair"),
        ({"question": "a\0b"}, "question holds a NUL character"),
    ],
)
def test_what_is_wrong_with_a_question_is_named_with_its_place_and_id(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    message = refusal(write(tmp_path, question(**changes)))
    assert message.startswith(": data[1].paragraphs[1].qas[2] (id 'e'): ")
    assert words in message


@pytest.mark.parametrize(
    ("given", "shown", "words"),
    [
        (MISSING, "", "id is missing"),
        (None, " (id null)", "id is null; allowed: a text or a whole number"),
        (7.5, " (id 7.5)", "id is 7.5; allowed: a text or a whole number"),
        (True, " (id true)", "id is true; allowed: a text or a whole number"),
        (["a"], " (id ['a'])", "id is ['a']; allowed: a text or a whole number"),
        ("", " (id '')", "id is empty"),
        ("\ud83d", r" (id '\ud83d')", "id holds half a surrogate pair, \\ud83d, which is no text"),
        ("a1", " (id 'a1')", "id is used twice, first at data[1].paragraphs[0].qas[1]"),
    ],
)
def test_an_id_is_a_text_or_a_whole_number_of_its_own(tmp_path: Path, given: object, shown: str, words: str) -> None:
    message = refusal(write(tmp_path, question(id=given)))
    assert message == f": data[1].paragraphs[1].qas[2]{shown}: {words}"


def test_a_number_and_its_digits_are_one_id(tmp_path: Path) -> None:
    file = write(tmp_path, question(id=7))
    assert read_squad(file)[-1].id == "7"
    file.write_text(file.read_text().replace('"a0"', '"7"'))
    assert "(id 7): id is used twice, first at data[1].paragraphs[0].qas[0]" in refusal(file)


@pytest.mark.parametrize(
    ("context", "words"),
    [("", "is empty"), (" \n", "is blank"), (None, "is null; allowed: a text"), ("\ud83d", "holds half a surrogate")],
)
def test_a_context_is_a_text(tmp_path: Path, context: object, words: str) -> None:
    message = refusal(write(tmp_path, question(), context))
    assert message.startswith(f": data[1].paragraphs[1].context {words}")


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], ": the document is []; allowed: an object (SQuAD's layout"),
        ({}, ": data is missing (SQuAD's layout"),
        ({"data": {}}, ": data is {}; allowed: a list (SQuAD's layout"),
        ({"data": []}, " holds no question"),
        ({"data": [{"id": "1", "context": "c", "question": "q"}]}, ": data[0].paragraphs is missing (SQuAD's layout"),
        ({"data": [{"paragraphs": [{"context": "c"}]}]}, ": data[0].paragraphs[0].qas is missing (SQuAD's layout"),
        ({"data": [{"paragraphs": [{"context": "c", "qas": [3]}]}]}, ": data[0].paragraphs[0].qas[0] is 3; allowed"),
    ],
)
def test_other_layouts(tmp_path: Path, document: object, words: str) -> None:
    (tmp_path / "own.json").write_text(json.dumps(document))
    assert refusal(tmp_path / "own.json").startswith(words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", " is empty"),
        (" \n", " is empty"),
        ('{"data":\n[', ", line 2: not valid JSON"),
        ('{"data": NaN}', ": not valid JSON: NaN is no number"),
        ('{"data": 1e999}', ": the number '1e999' is too large"),
        ('{"data": [], "data": []}', ": an object has the key 'data' twice"),
        ("[" * 100_000, ": nested too deeply"),
        (f'{{"data": {"9" * 5000}}}', ": a number has too many digits"),
    ],
)
def test_what_is_no_json(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "own.json").write_text(text)
    assert refusal(tmp_path / "own.json").startswith(words)


def test_answerable_questions_of_version_2_and_offsets_of_other_answers(tmp_path: Path) -> None:
    answers = [answer(answer_start=30), answer(answer_start=0), {"text": "the cat", "answer_start": 1}]
    found = read_squad(write(tmp_path, question(is_impossible=False, plausible_answers=[], answers=answers)))[-1]
    assert (found.answer_start, found.answers) == (CONTEXT.index("cat"), ("cat", "cat", "the cat"))
