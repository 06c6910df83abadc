"""How well one variant agrees with another, mostly int8 with fp32: a case per input, statistics, the worst cases.

The shadow comparison (live) and ``q8bert compare`` (offline) use the same functions, so that the same requests give the
same numbers.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from q8core.arrays import Logits
from q8core.tasks.agreement import wilson_interval
from service.queueing.batcher import LoadedModel, WorkItem
from service.tasks.verdict import Comparison, LabelVerdict, Verdict, compare_verdicts
from service.tasks.work import Work

WINDOW = 10_000
"""How many of a model's last comparisons the statistics cover."""
WORST = 20
"""How many of a model's worst cases are kept."""
_LABELS_SHOWN = 5
_TEXT_SHOWN = 10_000
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
_LOW_QUANTILES = {"p1": 0.01, "p10": 0.1}
# The 97.5 % quantile of the normal distribution: 95 % lie between it and its negative.
_Z = 1.959963984540054


@dataclass(frozen=True)
class Case:
    """One input that both variants have answered; without its text, unless the operator wants texts."""

    request_id: str
    task: str
    place: int
    """Index of the input in the request."""
    comparison: Comparison
    margin: float
    """How much more likely int8's answer was than its next one."""
    answers: Mapping[str, Any]
    """For each variant labels with scores, or the span's offsets and score."""
    tokens: int
    sequences: int
    characters: Mapping[str, int]
    """Length of each text."""
    texts: Mapping[str, str] | None = None
    """None unless asked for; cut."""

    def badness(self) -> tuple[bool, float, float]:
        """Return the sort key, largest for the worst case: disagreement, then distance of spans, then of scores."""
        found = self.comparison
        return (found.agree is False, -(1.0 if found.span_f1 is None else found.span_f1), found.abs_diff)

    def describe(self) -> dict[str, Any]:
        """Return the case as plain JSON values."""
        found = self.comparison
        about: dict[str, Any] = {
            "request_id": self.request_id,
            "input": self.place,
            "agree": found.agree,
            "abs_diff": found.abs_diff,
            "int8_margin": self.margin,
            "answers": dict(self.answers),
            "lengths": {"tokens": self.tokens, "sequences": self.sequences, "characters": dict(self.characters)},
        }
        if found.span_f1 is not None:
            about["span_f1"] = found.span_f1
        if self.texts is not None:
            about["texts"] = dict(self.texts)
        return about


@dataclass(frozen=True)
class Side:
    """One variant's part in the comparison of a request.

    Attributes:
        shown_as: its name in the cases.
        work: the request as its model has encoded it.
        items: its sequences.
        logits: one array for each sequence.
    """

    shown_as: str
    work: Work[object]
    items: Sequence[WorkItem]
    logits: list[Logits]


def compare_request(request_id: str, reference: Side, tested: Side, *, with_texts: bool) -> list[Case]:
    """Compare two variants' logits of a request, input by input.

    Args:
        request_id: the request's id in the cases.
        reference: the variant that comes first in the cases, such as fp32.
        tested: the other one, such as int8; the lengths and margins are its own.
        with_texts: keep the texts, cut to 10,000 characters, and the spans' words in the cases.
    """
    work, items = tested.work, tested.items
    expected, found = reference.work.verdicts(reference.logits), work.verdicts(tested.logits)
    cases: list[Case] = []
    first = 0
    for place, count in enumerate(work.sequences()):
        texts = work.texts(place)
        pair = {reference.shown_as: expected[place], tested.shown_as: found[place]}
        cases.append(
            Case(
                request_id=request_id,
                task=work.task,
                place=place,
                comparison=compare_verdicts(expected[place], found[place]),
                margin=found[place].margin,
                answers={name: _show(verdict, with_texts) for name, verdict in pair.items()},
                tokens=sum(item.tokens for item in items[first : first + count]),
                sequences=count,
                characters={name: len(text) for name, text in texts.items()},
                texts={name: text[:_TEXT_SHOWN] for name, text in texts.items()} if with_texts else None,
            )
        )
        first += count
    return cases


def _show(verdict: Verdict, with_texts: bool) -> list[dict[str, Any]] | dict[str, Any]:
    if isinstance(verdict, LabelVerdict):
        return [asdict(entry) for entry in verdict.scores[:_LABELS_SHOWN]]
    return verdict.spans[0].model_dump(exclude=None if with_texts else {"answer"})


def summarize(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return agreement with its 95 % interval and quantiles of the differences, as plain JSON values.

    For predicted numbers there are only differences.
    """
    judged = [found.agree for found in comparisons if found.agree is not None]
    total, agreed = len(judged), sum(judged)
    spans = [found.span_f1 for found in comparisons if found.span_f1 is not None]
    summary: dict[str, Any] = {
        "compared": len(comparisons),
        "agreed": None if comparisons and not judged else agreed,
        "agreement": agreed / total if total else None,
        "agreement_ci95": list(wilson_interval(agreed, total)) if total else None,
        "abs_diff": _distribution([found.abs_diff for found in comparisons], _QUANTILES, "max", max),
    }
    if spans:
        summary["span_f1"] = _distribution(spans, _LOW_QUANTILES, "min", min)
    return summary


def _distribution(
    values: Sequence[float], quantiles: Mapping[str, float], end: str, choose: Callable[[Iterable[float]], float]
) -> dict[str, float] | None:
    """Return mean, quantiles and the worst value."""
    if not values:
        return None
    found = np.quantile(np.asarray(values), list(quantiles.values())).tolist()
    # fsum: the same result in any order
    return {"mean": math.fsum(values) / len(values), **dict(zip(quantiles, found, strict=True)), end: choose(values)}


class WorstCases:
    """The worst cases within a window of the last cases.

    A case that leaves the window is not replaced by one that was dropped before.
    """

    def __init__(self, size: int = WORST, window: int | None = WINDOW) -> None:
        self._size = size
        self._window = window
        self._count = 0
        self._kept: list[tuple[int, Case]] = []

    def add(self, case: Case) -> None:
        """Keep the case if it is among the worst."""
        self._count += 1
        if self._window is not None and self._kept:
            self._kept = [entry for entry in self._kept if entry[0] > self._count - self._window]
        if len(self._kept) == self._size and case.badness() <= self._kept[-1][1].badness():
            return
        self._kept.append((self._count, case))
        self._kept.sort(key=lambda entry: entry[1].badness(), reverse=True)
        del self._kept[self._size :]

    def describe(self) -> list[dict[str, Any]]:
        """Return the cases as plain JSON values, the worst first."""
        return [case.describe() for _, case in self._kept]


class _Record:
    """The comparisons of one model."""

    def __init__(self, revision: str, window: int, worst: int) -> None:
        self.revision = revision
        self.recent: deque[tuple[float, Comparison]] = deque(maxlen=window)
        self.worst = WorstCases(worst, window)


class Agreement:
    """Rolling statistics and worst cases of each loaded model; thread-safe."""

    def __init__(self, window: int = WINDOW, worst: int = WORST) -> None:
        self._lock = threading.Lock()
        self._records: dict[LoadedModel, _Record] = {}
        self.window = window
        self._worst = worst

    def begin(self, model: LoadedModel, revision: str) -> None:
        """Start the statistics of a model, which are empty."""
        with self._lock:
            self._records[model] = _Record(revision, self.window, self._worst)

    def end(self, model: LoadedModel) -> None:
        """Forget a model."""
        with self._lock:
            del self._records[model]

    def knows(self, model: LoadedModel) -> bool:
        """Whether this model has statistics."""
        return model in self._records

    def record(self, model: LoadedModel, cases: Iterable[Case]) -> None:
        """Add comparisons of a known model."""
        now = time.time()
        with self._lock:
            record = self._records[model]
            for case in cases:
                record.recent.append((now, case.comparison))
                record.worst.add(case)

    def describe(self) -> dict[str, Any]:
        """Return statistics, their start time and the worst cases by model's name, as plain JSON values."""
        with self._lock:
            copies = [(model, one, list(one.recent), one.worst.describe()) for model, one in self._records.items()]
        return {
            model.name: {
                "task": model.task,
                "revision": one.revision,
                **summarize([comparison for _, comparison in recent]),
                "since": datetime.fromtimestamp(recent[0][0], UTC).isoformat(timespec="seconds") if recent else None,
                "worst": worst,
            }
            for model, one, recent, worst in copies
        }
