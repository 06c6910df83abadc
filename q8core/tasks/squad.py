"""SQuAD v1.1 in its official JSON layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from q8core.documents import Place, first_problem, parse_strict_json, place_name, shown
from q8core.errors import InputError
from q8core.tasks.examples import QAExample
from q8core.text_file import read_text, text_problem

_LAYOUT = (
    "SQuAD's layout: data[].paragraphs[] of context and qas[] of id, question and answers[] of text and answer_start"
)
_ANSWERABLE = "only SQuAD v1.1, whose questions all have an answer, is supported"
# ("data", 3, "paragraphs", 0, "qas", 1): longer paths are inside a question
_QUESTION = 6


def _number_as_text(value: object) -> object:
    if type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise PydanticCustomError("id", "a text or a whole number")
    return value


def _no_columns(value: object) -> object:
    if isinstance(value, dict):
        raise PydanticCustomError(
            "answers", "a list of objects with text and answer_start, not an object of lists as Hugging Face writes it"
        )
    return value


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Answer(_Strict):
    text: str
    answer_start: int


class _Question(_Strict):
    id: Annotated[str, BeforeValidator(_number_as_text)]
    question: str
    answers: Annotated[list[_Answer], BeforeValidator(_no_columns)]
    is_impossible: bool = False


class _Paragraph(_Strict):
    context: str
    qas: list[_Question]


class _Article(_Strict):
    paragraphs: list[_Paragraph]


class _Document(_Strict):
    data: list[_Article]


def read_squad(path: Path) -> list[QAExample]:
    """Read a SQuAD v1.1 file (``.json`` or ``.json.gz``) and check every answer against its context.

    A wrong ``answer_start`` of a first answer is moved to the nearest occurrence of its text in the context.

    Raises:
        InputError: another layout than SQuAD's, an empty text or a value that is not a text, a duplicate id, a question
            without an answer, or an answer that does not occur in its context or begins outside of it; names the file,
            the path in it and the question's id.
    """
    raw = parse_strict_json(read_text(path), path)
    try:
        document = _Document.model_validate(raw)
    except ValidationError as error:
        place, problem = first_problem(error)
        layout = f" ({_LAYOUT})" if len(place) <= _QUESTION else ""
        raise InputError(_sentence(path, raw, place, problem) + layout) from error
    examples: list[QAExample] = []
    places: dict[str, Place] = {}
    for i, article in enumerate(document.data):
        for j, paragraph in enumerate(article.paragraphs):
            inside = ("data", i, "paragraphs", j)
            if problem := _text_problem(paragraph.context):
                raise InputError(_sentence(path, raw, (*inside, "context"), problem))
            for k, question in enumerate(paragraph.qas):
                place = (*inside, "qas", k)
                if found := _problem(question, paragraph.context):
                    raise InputError(_sentence(path, raw, (*place, *found[0]), found[1]))
                if question.id in places:
                    problem = f"is used twice, first at {place_name(places[question.id])}"
                    raise InputError(_sentence(path, raw, (*place, "id"), problem))
                places[question.id] = place
                examples.append(_example(question, paragraph.context))
    if not examples:
        raise InputError(f"{path} holds no question")
    return examples


def _sentence(path: Path, raw: Any, place: Place, problem: str) -> str:
    """Return a message with the file, the path in it and, inside a question, its id."""
    name = place_name(place[:_QUESTION])
    if len(place) <= _QUESTION:
        return f"{path}: {name} {problem}"
    question = raw
    for part in place[:_QUESTION]:
        question = question[part]
    known = f" (id {shown(question['id'])})" if "id" in question else ""
    return f"{path}: {name}{known}: {place_name(place[_QUESTION:])} {problem}"


def _problem(question: _Question, context: str) -> tuple[Place, str] | None:
    """Return the first problem of a question with the right layout, and its path in the question."""
    for field, text in (("id", question.id), ("question", question.question)):
        if problem := _text_problem(text):
            return (field,), problem
    if question.is_impossible:
        return ("is_impossible",), f"is true; {_ANSWERABLE}"
    if not question.answers:
        return ("answers",), f"is an empty list; {_ANSWERABLE}"
    for number, answer in enumerate(question.answers):
        if problem := _text_problem(answer.text):
            return ("answers", number, "text"), problem
        if not 0 <= answer.answer_start < len(context):
            allowed = f"0 to {len(context) - 1}, a character of the context"
            return ("answers", number, "answer_start"), f"is {shown(answer.answer_start)}; allowed: {allowed}"
        if answer.text not in context:
            return ("answers", number, "text"), f"is {shown(answer.text)}, which is not in its context"
    return None


def _text_problem(text: str) -> str | None:
    return text_problem(text) or (None if text.strip() else "is blank" if text else "is empty")


def _example(question: _Question, context: str) -> QAExample:
    answers = tuple(answer.text for answer in question.answers)
    start = question.answers[0].answer_start
    if not context.startswith(answers[0], start):
        start = _nearest(context, answers[0], start)
    return QAExample(question.id, question.question, context, answers, start)


def _nearest(context: str, answer: str, start: int) -> int:
    """Return the code point of the occurrence of ``answer`` nearest to ``start``; it must occur."""
    before, after = context.rfind(answer, 0, start + len(answer)), context.find(answer, start)
    return min((place for place in (before, after) if place >= 0), key=lambda place: abs(place - start))
