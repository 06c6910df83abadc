"""Workloads: token batches of one length, or of the mixed lengths of real texts.

Speed depends on the lengths of texts, not on the words, so the ids are random. The built-in samples are plain lists of
lengths, and a tokenizer is needed only to count the tokens of a user's own file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from q8core.bench import sample_lengths
from q8core.engines import TokenBatch
from q8core.errors import InputError
from q8core.tasks.classify import encode_text
from q8core.tasks.columns import Columns
from q8core.tasks.qa import encode_windows
from q8core.tasks.squad import read_squad
from q8core.tasks.tabular import read_table
from q8core.tokenizer import load_tokenizer

MAX_LENGTH = 384
"""Longest window of a SQuAD context."""

DOC_STRIDE = 128
"""Context tokens that neighbouring windows share."""


class Shape(NamedTuple):
    """Number of sequences, and tokens of each."""

    sequences: int
    length: int

    def __str__(self) -> str:
        """Return the shape as written on the command line: 8x128."""
        return f"{self.sequences}x{self.length}"

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read `SEQUENCESxLENGTH`.

        Raises:
            InputError: if the text has another form.
        """
        left, cross, right = text.partition("x")
        if not (cross and left.isdecimal() and right.isdecimal() and int(left) and int(right)):
            raise InputError(f"shape is {text!r}; expected SEQUENCESxLENGTH, such as 1x128")
        return cls(int(left), int(right))

    def batch(self, vocabulary: int) -> TokenBatch:
        """Return random tokens of this shape."""
        return random_batch((self.length,) * self.sequences, vocabulary)

    def workload(self) -> Workload:
        """Return a workload of one such batch."""
        return Workload(str(self), ((self.length,) * self.sequences,))


@dataclass(frozen=True)
class Workload:
    """Batches to run one after another.

    Attributes:
        name: its name in tables.
        lengths: for each batch the tokens of its sequences.
    """

    name: str
    lengths: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """Real tokens of all batches."""
        return sum(map(sum, self.lengths))

    @property
    def padded_tokens(self) -> int:
        """Tokens if each sequence is padded to the longest of its batch."""
        return sum(len(batch) * max(batch) for batch in self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(map(max, self.lengths))

    def batches(self, vocabulary: int) -> list[TokenBatch]:
        """Return random tokens of these lengths."""
        return [random_batch(lengths, vocabulary) for lengths in self.lengths]

    def describe(self) -> dict[str, int]:
        """Return its sizes as plain JSON values."""
        return {
            "batches": len(self.lengths),
            "sequences": sum(map(len, self.lengths)),
            "tokens": self.tokens,
            "padded_tokens": self.padded_tokens,
        }


class _Kind(NamedTuple):
    """A kind of text: number of sequences, batch size, and the source of the lengths."""

    sequences: int
    batch: int
    sample: tuple[int, ...]
    lengths_in: Callable[[Path, int, Tokenizer], list[int]]


def parse_workload(text: str, tokenizer: Path | None) -> Workload:
    """Parse `KIND` (the built-in lengths) or `KIND=FILE` (the lengths in a user's file).

    Args:
        text: sst2: 256 sentences in batches of 16; squad: 64 windows in batches of 4; both in the order of the file.
        tokenizer: a folder with tokenizer.json, needed for files.

    Raises:
        InputError: for an unknown kind, a file of another layout, or a file without a tokenizer.
        CheckpointError: if the folder has no tokenizer.
    """
    name, equals, file = text.partition("=")
    if name not in _KINDS or (equals and not file):
        raise InputError(f"--workload is {text!r}; expected KIND or KIND=FILE, KIND one of {', '.join(_KINDS)}")
    kind, lengths = _KINDS[name], _KINDS[name].sample
    if file:
        if tokenizer is None:
            raise InputError(f"--workload {text} needs --tokenizer FOLDER, such as a checkpoint, to count its tokens")
        lengths = tuple(kind.lengths_in(Path(file), kind.sequences, load_tokenizer(tokenizer)))
    starts = range(0, len(lengths), kind.batch)
    return Workload(name, tuple(lengths[start : start + kind.batch] for start in starts))


def random_batch(lengths: Sequence[int], vocabulary: int) -> TokenBatch:
    """Return random tokens of these lengths, the same each time."""
    ids = np.random.default_rng(0).integers(vocabulary, size=sum(lengths))
    return TokenBatch(ids, np.zeros_like(ids), tuple(lengths))


def _sentence_lengths(file: Path, wanted: int, tokenizer: Tokenizer) -> list[int]:
    """Count the tokens of a file's first sentences (GLUE's layout: a column `sentence`)."""
    rows = read_table(file, Columns(text="sentence", raw_quotes=True))[:wanted]
    return [len(encode_text(tokenizer, row.text, None, MAX_LENGTH).input_ids) for row in rows]


def _window_lengths(file: Path, wanted: int, tokenizer: Tokenizer) -> list[int]:
    """Count the tokens of windows of questions spread over a file, since neighbours ask about the same paragraph."""
    examples = read_squad(file)
    number = min(wanted, len(examples))
    spread = [examples[place * len(examples) // number] for place in range(number)]
    windows = (encode_windows(tokenizer, each.question, each.context, MAX_LENGTH, DOC_STRIDE) for each in spread)
    return [len(window.input_ids) for group in windows for window in group][:wanted]


_KINDS = {
    "sst2": _Kind(256, 16, sample_lengths.SST2, _sentence_lengths),
    "squad": _Kind(64, 4, sample_lengths.SQUAD, _window_lengths),
}
