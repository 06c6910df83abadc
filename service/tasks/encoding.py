"""From texts to an engine's sequences, and from logits to predictions: all parts of a request that need no queue.

Plain functions of a model and a request; `service.answering.text_threads` decides where they run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from q8core.arrays import Logits
from q8core.errors import InputError
from q8core.special_tokens import sequence_template
from q8core.tasks.classify import Encoded, FunctionToApply, Side, encode_text, encode_texts, postprocess
from q8core.tasks.qa import Window, best_answers, encode_windows, question_is_cut, window_step
from q8core.tokenizer import encode_plain
from service.errors import BadInput, InputTooLong, TooManyTokens
from service.models.model import Model
from service.queueing.batcher import WorkItem
from service.queueing.token_bounds import least_tokens
from service.tasks import schemas
from service.tasks.verdict import LabelVerdict, SpanVerdict, Verdict

DEFAULT_WINDOW = 384
DEFAULT_STRIDE = 128


@dataclass(frozen=True)
class EncodedRequest:
    """A request as sequences, with the counts that its headers report."""

    items: list[WorkItem]
    truncated: int
    windows: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(item.tokens for item in self.items)


@dataclass(frozen=True)
class BodyWords:
    """The names of a route's fields, for error messages."""

    inputs: str = "inputs"
    truncate: str = "parameters.truncation to true"
    """How to allow truncation, worded to follow "set"."""
    places: Sequence[int] | None = None
    """The indices that the inputs have in the body; None: all are here."""

    def of(self, place: int, *, listed: bool) -> str:
        """Return the name of one input, by its index in a body that has one or a list of them."""
        if self.places is not None:
            return f"{self.inputs}[{self.places[place]}]"
        return f"{self.inputs}[{place}]" if listed else self.inputs


OWN_WORDS = BodyWords()
"""The names in /classify."""


@dataclass(frozen=True)
class Cut:
    """How to cut texts that are too long.

    Attributes:
        limit: tokens of an input, special ones included, not above what the model takes; None: as many as that.
        side: the side on which tokens are removed.
    """

    limit: int | None = None
    side: Side = "right"


USUAL_CUT = Cut()
"""How /classify cuts texts."""


class ClassifyWork:
    """One classification request, from any route."""

    def __init__(
        self,
        model: Model,
        items: Sequence[tuple[str, str | None]],
        parameters: schemas.ClassifyParameters,
        words: BodyWords = OWN_WORDS,
        cut: Cut = USUAL_CUT,
    ) -> None:
        self._model = model
        self._limit = model.max_length if cut.limit is None else cut.limit
        self._side: Side = cut.side
        self._items = items
        self._parameters = parameters
        self._words = words
        self._cut = cut
        self.task = model.checkpoint.task
        self.model = model
        self.inputs = len(items)
        self.characters = sum(len(text) + len(pair or "") for text, pair in items)

    def least_tokens(self, enough: int) -> int:
        """Return a lower bound on the tokens of all sequences; see `service.queueing.token_bounds`."""
        limit, found, tokenizer = self._limit, 0, self._model.tokenizer
        for text, pair in self._items:
            words = sum(least_tokens(tokenizer, one, limit) for one in (text, pair) if one is not None)
            found += min(limit, sequence_template(tokenizer).layout(pair=pair is not None).specials + words)
            if found >= enough:
                break
        return found

    def encode(self) -> EncodedRequest:
        """Encode every input.

        Raises:
            InputError: an input is a pair, and the model takes no pairs.
            InputTooLong: an input does not fit and truncation is off.
        """
        tokenizer, limit, side = self._model.tokenizer, self._limit, self._side
        self._model.checkpoint.check_pairs(tokenizer, any(pair is not None for _, pair in self._items))
        encoded = encode_texts(tokenizer, self._items, limit, side)
        if not self._parameters.truncation:
            for place, one in enumerate(encoded):
                if one.truncated:
                    raise self._too_long(place, limit)
        return EncodedRequest([_work_item(one) for one in encoded], sum(one.truncated for one in encoded))

    def answers(self, logits: list[Logits]) -> list[list[schemas.LabelScore]]:
        """Turn each row of logits, shape ``(labels,)``, into scored labels."""
        function = self._parameters.function_to_apply or default_function(self._model)
        labels, top_k = self._model.checkpoint.labels, self._parameters.top_k
        return postprocess(_rows(logits), labels, function, top_k)

    def join(self, answers: list[Any]) -> schemas.ClassifyResponse:
        """Return the answers, which are a list for a single text, too."""
        return answers

    def again(self, model: Model, places: Sequence[int]) -> ClassifyWork:
        """Return some of the texts for a model; it is read as far as this one read them, or as far as it can."""
        words = replace(self._words, places=places) if self.inputs > 1 else self._words
        limit = None if self._cut.limit is None else min(self._cut.limit, model.max_length)
        cut = replace(self._cut, limit=limit)
        return ClassifyWork(model, [self._items[place] for place in places], self._parameters, words, cut)

    def verdicts(self, logits: list[Logits]) -> list[Verdict]:
        """Return all labels of each text, scored by the function of the problem that the model was trained for."""
        function, labels = default_function(self._model), self._model.checkpoint.labels
        return [LabelVerdict(tuple(row)) for row in postprocess(_rows(logits), labels, function)]

    def sequences(self) -> list[int]:
        """Return 1 for each text or pair of texts."""
        return [1] * len(self._items)

    def texts(self, place: int) -> dict[str, str]:
        """Return the text, and the second text of a pair."""
        text, pair = self._items[place]
        return {"text": text} if pair is None else {"text": text, "text_pair": pair}

    def _too_long(self, place: int, limit: int) -> InputTooLong:
        text, pair = self._items[place]
        tokens = len(encode_text(self._model.tokenizer, text, pair, max_length=2**31).input_ids)
        name = self._words.of(place, listed=len(self._items) > 1)
        return InputTooLong(
            f"{name} has {tokens} tokens, {self._model.limit_text}; shorten it or set {self._words.truncate}"
        )


class QAWork:
    """One /qa request.

    Args:
        model: the QA model.
        items: questions and contexts.
        parameters: how to cut windows and search spans.
        listed: whether the client sent a list, and so gets a list.
        max_tokens: limit on the tokens of all windows; more are refused before any window is built.
        words: the names of the inputs, for error messages.

    Raises:
        BadInput: the window is larger than the model takes.
        InputError: the model takes no pairs, and so no questions.
    """

    def __init__(
        self,
        model: Model,
        items: Sequence[schemas.QAInput],
        parameters: schemas.QAParameters,
        *,
        listed: bool,
        max_tokens: int,
        words: BodyWords = OWN_WORDS,
    ) -> None:
        model.checkpoint.check_pairs(model.tokenizer)
        self._specials = sequence_template(model.tokenizer).layout(pair=True).specials
        longest = model.checkpoint.config.spec.positions
        self._size = parameters.max_seq_len or min(DEFAULT_WINDOW, model.max_length)
        if self._size > longest:
            raise BadInput(f"parameters.max_seq_len is {self._size}; the model takes at most {longest} tokens")
        stride = parameters.doc_stride
        self._stride = min(self._size // 2, DEFAULT_STRIDE) if stride is None else stride
        self._model = model
        self._items = items
        self._parameters = parameters
        self._listed = listed
        self._words = words
        self._max_tokens = max_tokens
        self._windows: list[list[Window]] = []
        self.task = model.checkpoint.task
        self.model = model
        self.inputs = len(items)
        self.characters = sum(len(item.question) + len(item.context) for item in items)

    def least_tokens(self, enough: int) -> int:
        """Return a lower bound on the tokens of all windows; see `service.queueing.token_bounds`."""
        longest_question, found, tokenizer = self._parameters.max_question_len, 0, self._model.tokenizer
        for item in self._items:
            question = min(longest_question, least_tokens(tokenizer, item.question, longest_question))
            found += self._specials + question + least_tokens(tokenizer, item.context, enough - found)
            if found >= enough:
                break
        return found

    def encode(self) -> EncodedRequest:
        """Cut every context into windows.

        Raises:
            BadInput: an empty question or context, or no room for context.
            TooManyTokens: together the windows exceed what one request may hold.
        """
        expected = 0
        for place, item in enumerate(self._items):
            expected += self._expected_tokens(item, self._max_tokens - expected)
            if expected > self._max_tokens:
                raise TooManyTokens(
                    f"the windows of this request hold more than {self._max_tokens} tokens; send it in parts, or "
                    "with larger windows or a smaller doc_stride"
                )
            self._windows.append(self._encode_one(place, item))
        truncated = sum(self._question_is_cut(item, own) for item, own in zip(self._items, self._windows, strict=True))
        flat = [_work_item(window) for own in self._windows for window in own]
        return EncodedRequest(flat, truncated, len(flat))

    def answers(self, logits: list[Logits]) -> list[list[schemas.AnswerSpan]]:
        """Find the answers in each context from the logits of its windows, each of shape ``(length, 2)``."""
        return self._search_all(logits, self._parameters.top_k)

    def join(self, answers: list[Any]) -> schemas.QAResponse:
        """Return a list for a list of questions, and the best span or a list of `top_k` for each."""
        found = answers if self._parameters.top_k > 1 else [spans[0] for spans in answers]
        return found if self._listed else found[0]

    def again(self, model: Model, places: Sequence[int]) -> QAWork:
        """Return some of the questions for a model, with the windows of this work if it is the same model."""
        words = replace(self._words, places=places) if self._listed else self._words
        items, most = [self._items[place] for place in places], self._max_tokens
        found = QAWork(model, items, self._parameters, listed=self._listed, max_tokens=most, words=words)
        if model is self._model:
            found._windows = [self._windows[place] for place in places]
        return found

    def verdicts(self, logits: list[Logits]) -> list[Verdict]:
        """Return the two best spans for each question."""
        return [SpanVerdict(tuple(spans)) for spans in self._search_all(logits, 2)]

    def sequences(self) -> list[int]:
        """Return the number of windows of each context."""
        return [len(own) for own in self._windows]

    def texts(self, place: int) -> dict[str, str]:
        """Return question and context."""
        return {"question": self._items[place].question, "context": self._items[place].context}

    def _encode_one(self, place: int, item: schemas.QAInput) -> list[Window]:
        try:
            return encode_windows(
                self._model.tokenizer,
                item.question,
                item.context,
                max_seq_len=self._size,
                doc_stride=self._stride,
                max_question_len=self._parameters.max_question_len,
            )
        except InputError as error:
            named = f"{self._words.of(place, listed=True)}: {error}" if self._listed else str(error)
            raise BadInput(named) from error

    def _expected_tokens(self, item: schemas.QAInput, allowed: int) -> int:
        """Return an upper bound on the tokens of all windows; tokenize, to be exact, only if it would be too large.

        Windows overlap, so small windows with a large stride could turn a modest context into gigabytes.
        """
        longest_question = self._parameters.max_question_len
        room = self._room(min(len(item.question), longest_question))
        # a lower bound on the true step: the question may have fewer tokens, which leaves the windows more room
        by_characters = self._window_tokens(room, max(1, room - self._stride), len(item.context))
        if by_characters <= allowed:
            return by_characters
        question, context = (len(encode_plain(self._model.tokenizer, text)) for text in (item.question, item.context))
        room = self._room(min(question, longest_question))
        return self._window_tokens(room, window_step(room, self._stride), context)

    def _room(self, question: int) -> int:
        """Return the tokens of context in a window with a question of this many tokens."""
        return max(1, self._size - question - self._specials)

    def _window_tokens(self, room: int, step: int, context: int) -> int:
        """Return the tokens of all windows of a context of this many tokens."""
        return (1 + math.ceil(max(0, context - room) / step)) * self._size

    def _question_is_cut(self, item: schemas.QAInput, windows: Sequence[Window]) -> bool:
        return question_is_cut(self._model.tokenizer, item.question, windows, self._parameters.max_question_len)

    def _search_all(self, logits: list[Logits], top_k: int) -> list[list[schemas.AnswerSpan]]:
        rest = iter(logits)
        return [
            self._search(item, own, [next(rest) for _ in own], top_k)
            for item, own in zip(self._items, self._windows, strict=True)
        ]

    def _search(
        self, item: schemas.QAInput, windows: list[Window], logits: list[Logits], top_k: int
    ) -> list[schemas.AnswerSpan]:
        found = best_answers(
            windows,
            logits,
            item.context,
            top_k=top_k,
            max_answer_len=self._parameters.max_answer_len,
            handle_impossible=self._parameters.handle_impossible_answer,
            align_to_words=self._parameters.align_to_words,
        )
        return [schemas.AnswerSpan(answer=a.answer, score=a.score, start=a.start, end=a.end) for a in found]


def default_function(model: Model) -> FunctionToApply:
    """Return the score function of the problem that the model was trained for, as Hugging Face's pipeline does."""
    problem = model.checkpoint.problem_type
    if problem == "regression":
        return "none"
    if problem == "multi_label_classification":
        return "sigmoid"
    return "softmax"


def _rows(logits: list[Logits]) -> Logits:
    return np.stack(logits)


def _work_item(encoded: Encoded | Window) -> WorkItem:
    return WorkItem(encoded.input_ids, encoded.token_type_ids)
