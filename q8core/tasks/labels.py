"""Matches labels by meaning: which class of the data belongs to which output of a model.

Names match in any order and case, whole numbers match however they are written (``1``, ``1.0``), and ``LABEL_k``, which
Hugging Face writes where nobody named the classes, matches the number k. Everything else needs the option ``--labels``,
which lists the data's labels in the order of the model's outputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from q8core.errors import InputError

_Key = TypeVar("_Key")

_NUMBER = re.compile(r"[+-]?[0-9]{1,15}(\.0{1,15})?")
_GENERIC = re.compile(r"LABEL_([0-9]{1,15})")
_SHOWN = 20
MOST_CLASSES, MOST_CHARACTERS = 100_000, 10_000_000
"""Limits of a task's number of classes and of the characters of all labels, so that a manifest and /info stay small."""


@dataclass(frozen=True)
class Classes:
    """The classes of a task by index.

    Attributes:
        names: the names in the model's answers.
        numbers: the number of each class, if the data has numbers; None if it has names.
        outputs: the model's output for each class, from ``--labels``; None without that option.
    """

    names: tuple[str, ...]
    numbers: tuple[int, ...] | None = None
    outputs: tuple[int, ...] | None = None

    def order_among(self, outputs: Sequence[str]) -> tuple[int, ...] | None:
        """Return for each class the index of the matching output of the model; None if their labels differ.

        Args:
            outputs: the model's labels by index.
        """
        found = self.by_meaning(outputs)
        if found is None and self.outputs is not None and len(self.outputs) == len(outputs):
            return self.outputs
        return found

    def by_meaning(self, outputs: Sequence[str]) -> tuple[int, ...] | None:
        """Do the same as :meth:`order_among`, but only by names and numbers."""
        if len(outputs) != len(self.names):
            return None
        by_name = _unique(map(_folded, outputs))
        names = [_folded(name) for name in self.names]
        if by_name and len(set(names)) == len(names) and set(names) == set(by_name):
            return tuple(by_name[name] for name in names)
        if tuple(outputs) == self.names:
            return tuple(range(len(outputs)))
        by_number = _unique(map(number_of, outputs))
        numbers = self.numbers or tuple(number_of(name) for name in self.names)
        if by_number and set(numbers) == set(by_number):
            return tuple(by_number[number] for number in numbers)
        return None


@dataclass(frozen=True)
class Lookup:
    """Finds the index of a label as written in the data.

    Attributes:
        written: labels as written in the data -> index.
    """

    written: Mapping[str, int]
    _numbers: dict[int | None, int] | None = field(init=False, compare=False)
    _folded: dict[str | None, int] | None = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_numbers", self._of(number_of(label) for label in self.written))
        object.__setattr__(self, "_folded", self._of(_folded(label) for label in self.written))

    def __call__(self, label: str) -> int | None:
        """Return the index of a label: as written, or with the same meaning; None if there is no such class."""
        if label in self.written:
            return self.written[label]
        number = number_of(label)
        if number is not None and self._numbers is not None:
            return self._numbers.get(number)
        return self._folded.get(_folded(label)) if self._folded is not None else None

    def _of(self, meanings: Iterable[_Key]) -> dict[_Key, int] | None:
        """Return meaning -> index; None if two classes have the same meaning, or one has none."""
        found: dict[_Key, int] = {}
        for meaning, index in zip(meanings, self.written.values(), strict=True):
            if meaning is None or found.setdefault(meaning, index) != index:
                return None
        return found


def own_classes(
    data: Iterable[str], outputs: Sequence[str] = (), asked: Sequence[str] | None = None
) -> tuple[Classes, Lookup]:
    """Return the classes of a user's own data, and the lookup of their labels.

    Args:
        data: all labels as written in the data.
        outputs: the model's labels by index; empty for a model without a head.
        asked: the data's labels in the order of the outputs, from ``--labels``.

    Raises:
        InputError: the labels of data and model have different or unclear meanings; shows both lists.
    """
    labels = _ordered(set(data))
    _check_size(labels)
    if asked is not None:
        _check_asked(asked, labels, outputs)
    numbers = None if asked is None else tuple(range(len(asked)))
    if not outputs:
        names = tuple(labels if asked is None else asked)
        return Classes(names, _numbers_of(names)), Lookup({name: i for i, name in enumerate(names)})
    written = _by_meaning(labels, outputs)
    if asked is not None:
        said = {label: i for i, label in enumerate(asked)}
        if written is not None and any(said[label] != written[label] for label in labels):
            raise InputError(
                f"--labels is {_shown(asked)}, but by their names the model's outputs are {_shown(outputs)}; "
                "leave --labels out"
            )
        written = said
    if written is None:
        raise _differ(labels, outputs)
    generic = all(_GENERIC.fullmatch(name) for name in outputs)
    names = tuple(outputs)
    if generic and (asked is not None or not any(_GENERIC.fullmatch(label) for label in labels)):
        found = {index: label for label, index in written.items()}  # the data's names replace generic ones
        names = tuple(found.get(i, str(number_of(name))) for i, name in enumerate(outputs))
    return Classes(names, _numbers_of(names), numbers), Lookup({**{name: i for i, name in enumerate(names)}, **written})


def official_classes(names: Sequence[str], outputs: Sequence[str] = (), asked: Sequence[str] | None = None) -> Classes:
    """Return the classes of a public data set, whose numbers are those of Hugging Face's ``glue``.

    Args:
        names: the labels in the official order.
        outputs: the model's labels by index; empty for a model without a head.
        asked: the names in the order of the outputs, from ``--labels``.

    Raises:
        InputError: ``asked`` has other names, or contradicts the model's labels.
    """
    plain = Classes(tuple(names), tuple(range(len(names))))
    if asked is None:
        return plain
    if sorted(asked) != sorted(names):
        raise InputError(f"--labels is {_shown(asked)}; it must name each of {_shown(names)} once")
    order = tuple(list(asked).index(name) for name in names)
    if not outputs:
        raise InputError("--labels is for a model with a head; the labels of this task have their own order")
    known = plain.by_meaning(outputs)
    if known not in (None, order) and not all(_GENERIC.fullmatch(name) for name in outputs):
        raise InputError(
            f"--labels is {_shown(asked)}, but by their names the model's outputs are {_shown(outputs)}; leave it out"
        )
    return Classes(plain.names, None if known is not None and known != order else plain.numbers, order)


def differing(outputs: Sequence[str], names: Sequence[str]) -> str:
    """Return a message that model and data have different labels, and what to do."""
    return (
        f"the model answers {_shown(outputs)}, the data has {_shown(names)}: which is which cannot be told. --labels "
        f"names the data's labels in the order of the model's outputs (0 to {len(outputs) - 1}), with commas"
    )


def parse_labels(text: str | None) -> tuple[str, ...] | None:
    """Parse the value of ``--labels``.

    Raises:
        InputError: fewer than two names, an empty name, or a duplicate.
    """
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(","))
    if len(names) < 2 or not all(names) or len(set(names)) != len(names):
        raise InputError(f"--labels is {text!r}; at least 2 different names with commas are expected")
    return names


def number_of(label: str) -> int | None:
    """Return the whole number that a label means; None for a name."""
    generic = _GENERIC.fullmatch(label.strip())
    if generic:
        return int(generic[1])
    return int(label.strip().partition(".")[0]) if _NUMBER.fullmatch(label.strip()) else None


def _by_meaning(labels: Sequence[str], outputs: Sequence[str]) -> dict[str, int] | None:
    """Return label -> output; None if a label has no output, or two have the same."""
    lookup = Lookup({name: i for i, name in enumerate(outputs)})
    found = {label: lookup(label) for label in labels}
    indices = [index for index in found.values() if index is not None]
    return dict(zip(found, indices, strict=True)) if len(set(indices)) == len(found) else None


def _check_size(labels: Sequence[str]) -> None:
    if len(labels) > MOST_CLASSES or sum(map(len, labels)) > MOST_CHARACTERS:
        raise InputError(
            f"the data has {len(labels)} labels with {sum(map(len, labels))} characters; allowed: {MOST_CLASSES} with "
            f"{MOST_CHARACTERS} (is it the column of the labels?)"
        )


def _check_asked(asked: Sequence[str], labels: Sequence[str], outputs: Sequence[str]) -> None:
    if outputs and len(asked) != len(outputs):
        raise InputError(f"--labels has {len(asked)} names; the model has {len(outputs)} outputs: {_shown(outputs)}")
    unknown = [label for label in labels if label not in asked]
    if unknown:
        raise InputError(
            f"the data has labels that --labels does not name: {_shown(unknown)}; it names {_shown(asked)}"
        )


def _differ(labels: Sequence[str], outputs: Sequence[str]) -> InputError:
    return InputError(differing(outputs, labels))


def _ordered(labels: set[str]) -> list[str]:
    """Return the labels sorted: numbers by value, names alphabetically.

    Raises:
        InputError: one number is written in two ways.
    """
    numbers = {label: number_of(label) for label in sorted(labels)}
    if any(number is None for number in numbers.values()):
        return sorted(labels)
    if len(set(numbers.values())) < len(numbers):
        raise InputError(f"the data writes one number in several ways: {_shown(sorted(labels))}; write it in one")
    return sorted(labels, key=lambda label: (numbers[label], label))


def _numbers_of(names: Sequence[str]) -> tuple[int, ...] | None:
    numbers = [number for number in map(number_of, names) if number is not None]
    return tuple(numbers) if len(set(numbers)) == len(names) else None


def _unique(keys: Iterable[_Key]) -> dict[_Key, int] | None:
    """Return key -> index; None if a key occurs twice or is None."""
    found: dict[_Key, int] = {}
    for index, key in enumerate(keys):
        if key is None or key in found:
            return None
        found[key] = index
    return found


def _folded(label: str) -> str:
    return label.strip().casefold()


def _shown(labels: Sequence[str]) -> str:
    return ", ".join(labels[:_SHOWN]) + (f", ... ({len(labels)} in all)" if len(labels) > _SHOWN else "")
