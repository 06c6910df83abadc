"""Special tokens and token types of a sequence of one text or two, as a tokenizer's post-processor makes them.

All code that builds sequences of token ids takes them from here, so that no name such as ``[CLS]`` is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise

from tokenizers import Encoding, Tokenizer, models

from q8core.errors import CheckpointError, InputError
from q8core.once_per_tokenizer import once_per_tokenizer

# placeholder ids for the texts; no vocabulary is so large that its special tokens have these ids
_TEXTS = (2**32 - 2, 2**32 - 1)


@dataclass(frozen=True)
class Marks:
    """Consecutive special tokens, with their token types."""

    ids: tuple[int, ...]
    types: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """A sequence of one or more texts: ``marks[0] text marks[1] text marks[2]``.

    Attributes:
        marks: the special tokens before, between and after the texts; one more than there are texts.
        types: the token type of each text.
    """

    marks: tuple[Marks, ...]
    types: tuple[int, ...]

    @property
    def specials(self) -> int:
        """How many special tokens a sequence has."""
        return len(self.ids)

    @cached_property
    def ids(self) -> tuple[int, ...]:
        """The special tokens, in order."""
        return tuple(index for marks in self.marks for index in marks.ids)

    @property
    def highest_type(self) -> int:
        """The largest token type."""
        return max(*self.types, *(kind for marks in self.marks for kind in marks.types))

    def join(self, *texts: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return token ids and token types of a whole sequence, or of its beginning if texts are left out."""
        ids, types = list(self.marks[0].ids), list(self.marks[0].types)
        for text, kind, marks in zip(texts, self.types, self.marks[1:], strict=False):
            ids += [*text, *marks.ids]
            types += [*[kind] * len(text), *marks.types]
        return ids, types


@dataclass(frozen=True)
class SequenceTemplate:
    """The layouts of a tokenizer's sequences.

    Attributes:
        one: the layout of a single text.
        two: the layout of a pair; None if the tokenizer does not join two texts in this order.
    """

    one: Layout
    two: Layout | None

    def layout(self, *, pair: bool) -> Layout:
        """Return the layout of a text or of a pair.

        Raises:
            InputError: the tokenizer makes no pairs.
        """
        if not pair:
            return self.one
        if self.two is None:
            raise InputError(
                "pairs of texts, and questions with contexts, cannot be made: the tokenizer's post_processor does not "
                "put special tokens before, between and after two texts"
            )
        return self.two


@once_per_tokenizer
def sequence_template(tokenizer: Tokenizer) -> SequenceTemplate:
    """Return the layouts of a tokenizer's sequences; its padding and truncation must be off.

    Raises:
        CheckpointError: it does not put special tokens before and after a single text.
    """
    first, second = _placeholders()
    one = _layout(tokenizer.post_process(first), _TEXTS[:1])
    if one is None:
        raise CheckpointError(
            "the tokenizer's post_processor does not put special tokens before and after a text, which is what "
            "encoders are trained with; save the tokenizer that the model was trained with"
        )
    return SequenceTemplate(one, _layout(tokenizer.post_process(first, second), _TEXTS))


@cache
def _placeholders() -> tuple[Encoding, Encoding]:
    """Return two texts of one token each."""
    letters = Tokenizer(models.WordLevel({"a": _TEXTS[0], "b": _TEXTS[1]}, unk_token="a"))
    return letters.encode("a"), letters.encode("b")  # not as a batch, which would start threads


def _layout(found: Encoding, texts: Sequence[int]) -> Layout | None:
    """Return the layout of a sequence of placeholders; None unless it has each text once, in order."""
    ids, types = found.ids, found.type_ids
    if [index for index in ids if index in _TEXTS] != list(texts):
        return None
    places = [ids.index(text) for text in texts]
    marks = tuple(
        Marks(tuple(ids[before + 1 : after]), tuple(types[before + 1 : after]))
        for before, after in pairwise([-1, *places, len(ids)])
    )
    return Layout(marks, tuple(types[place] for place in places)) if all(one.ids for one in marks) else None
