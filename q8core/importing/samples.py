"""Twenty inputs of different lengths with which two programs are compared."""

from __future__ import annotations

from itertools import cycle, islice

_SENTENCES = (
    "Good.",
    "A gripping, funny film!",
    "Who built the tower, and when?",
    "It was not bad at all; I would see it again.",
    "The Eiffel Tower was built from 1887 to 1889 by the company of Gustave Eiffel.",
    "Zürich, São Paulo and 東京 are cities; $5.00 (about 4.60 €) is a price.",
    'He said: "don\'t" - and left the house at 7:45 a.m. with two cats, a dog and an umbrella.',
    "Unbelievably, internationalization and counterrevolutionaries share the longest words of this paragraph.",
)
_WORDS = (1, 2, 3, 4, 5, 7, 9, 12, 15, 18, 22, 27, 33, 40, 50, 65, 90, 130, 200, 2000)
"""Words of each input; the last one is longer than models read, so that it is cut."""
_QUESTIONS = ("Who built it?", "When was it built?", "What did he say, and when did he leave?", "Which cities?")
PAIRS = range(3, 9)
"""Inputs that are pairs if the model takes pairs: short ones, which no model has to cut."""
COUNT = len(_WORDS)


def texts() -> list[str]:
    """Return texts, from one word to more than models read."""
    words = " ".join(_SENTENCES).split()
    return [" ".join(islice(cycle(words), 3 * i, 3 * i + count)) for i, count in enumerate(_WORDS)]


def questions() -> list[str]:
    """Return a question for each text."""
    return list(islice(cycle(_QUESTIONS), COUNT))
