"""SQuAD v1.1 in its official JSON layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from q8core.errors import InputError
from q8core.tasks.examples import QAExample, open_text


def read_squad(path: Path) -> list[QAExample]:
    """Read a SQuAD v1.1 file (``.json`` or ``.json.gz``) and check every answer against its context.

    An ``answer_start`` that points elsewhere is moved to the nearest occurrence of the same text.

    Raises:
        InputError: not the SQuAD layout, an empty question, or an answer that does not occur in its context.
    """
    text = open_text(path)
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}") from error
    examples: list[QAExample] = []
    try:
        for article in document["data"]:
            for paragraph in article["paragraphs"]:
                examples += [_example(path, paragraph["context"], qa) for qa in paragraph["qas"]]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path} does not have SQuAD's layout (data[].paragraphs[].context / .qas[].question, id, answers): "
            f"{type(error).__name__} {error}"
        ) from error
    if not examples:
        raise InputError(f"{path} holds no question")
    return examples


def _example(path: Path, context: str, qa: dict[str, Any]) -> QAExample:
    question = str(qa["question"])
    if not question.strip():
        raise InputError(f"{path}, question {qa['id']}: the question is empty")
    answers = tuple(str(answer["text"]) for answer in qa["answers"])
    if not answers:
        raise InputError(f"{path}, question {qa['id']}: no answer; only SQuAD v1.1 (all answerable) is supported")
    start = int(qa["answers"][0]["answer_start"])
    if context[start : start + len(answers[0])] != answers[0]:
        start = _nearest(context, answers[0], start)
        if start < 0:
            raise InputError(f"{path}, question {qa['id']}: answer {answers[0]!r} is not in its context")
    return QAExample(str(qa["id"]), question, context, answers, start)


def _nearest(context: str, answer: str, start: int) -> int:
    """Code point of the occurrence of ``answer`` nearest to ``start``, -1 where there is none."""
    before, after = context.rfind(answer, 0, start + len(answer)), context.find(answer, max(start, 0))
    found = [place for place in (before, after) if place >= 0]
    return min(found, key=lambda place: abs(place - start)) if found else -1
